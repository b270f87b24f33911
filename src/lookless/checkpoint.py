"""Whether a checkpoint holds the weights of its model: every one, of its shape, and no others.

Transformers makes up what is missing and drops what is left over, and goes on with a warning. Such a model answers, and
its answers mean nothing.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ModelError


def check_weights(name: str, found: Mapping[str, Any]) -> None:
    """Check what transformers found in the checkpoint of the model ``name`` (its ``output_loading_info``).

    Raises:
        ModelError: tensors are missing or of other shapes, so they would be random numbers; or there are some that the
            model has no place for, so it is another model than the one that was saved.
    """
    missing, unknown = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    version = importlib.metadata.version("transformers")
    if missing:
        instead = f" It holds {_some(unknown)} instead." if unknown else ""
        raise ModelError(
            f"the weights of {name} are not all there: {_some(missing)} would be random numbers.{instead} Get the "
            f"whole checkpoint, with the names that transformers {version} gives its tensors."
        )
    other = [f"{tensor} is {_shape(held)} and not {_shape(own)}" for tensor, held, own in _mismatched(found)]
    if other:
        raise ModelError(
            f"the weights of {name} do not fit its config.json: {_some(other)}. Get the checkpoint and the "
            f"configuration that belong together."
        )
    if unknown:
        raise ModelError(
            f"the weights of {name} are of another model than its config.json says: transformers {version} has no "
            f"place for {_some(unknown)}. Get the configuration that belongs to it, merge an adapter into the weights, "
            f"or leave out of the file what the model does not need."
        )


def _mismatched(found: Mapping[str, Any]) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """Of each tensor of another shape its name, the shape in the file, and that of the model."""
    return sorted((tensor, tuple(held), tuple(own)) for tensor, held, own in found.get("mismatched_keys", ()))


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "one number"


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
