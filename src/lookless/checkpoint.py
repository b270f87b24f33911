"""Whether a checkpoint holds the weights of its model: every one, of its shape.

Transformers makes up what is missing, and goes on with a warning. Such a model answers, and its answers mean nothing.
What is left over it drops. Many checkpoints hold a whole part that their model has no place for, which is told and no
more; but a tensor that belongs into a module the model has says that it is another model.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .errors import ModelError

#: Numbers that older versions of transformers stored, and later ones compute.
COMPUTED = (".inv_freq", ".position_ids", ".masked_bias")


def check_weights(name: str, modules: Collection[str], found: Mapping[str, Any]) -> None:
    """Check what transformers found in the checkpoint of a model of these ``modules`` (its ``output_loading_info``).

    Raises:
        ModelError: tensors are missing or of other shapes, so they would be random numbers; or modules of the model
            have more in the checkpoint than they use.

    Warns:
        UserWarning: the model has no place for some.
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
    inside = [tensor for tensor in unknown if ".".join(tensor.split(".")[:-2]) in modules]
    inside = [tensor for tensor in inside if not tensor.endswith(COMPUTED)]
    if inside:
        raise ModelError(
            f"the weights of {name} are of another model than its config.json says: transformers {version} has no "
            f"place for {_some(inside)}. Get the configuration that belongs to it, or merge an adapter into the "
            f"weights."
        )
    if unknown:
        warnings.warn(
            f"the checkpoint of {name} holds {_some(unknown)}, for which transformers {version} has no place: they are "
            f"not used.",
            stacklevel=2,
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
