"""``lookless serve``: the command line of vLLM that serves a model under a plan."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..plan import Plan
from ..reference import NAMES
from .settings import KEY, ServingError, check_plan
from .shipped import servable

#: The words that run vLLM's own command line in this environment.
VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")
OPTION = "--additional-config"
NAME = "--served-model-name"


def command(model: str, plan: str, options: Sequence[str]) -> list[str]:
    """The words to execute. ``options`` are vLLM's; a configuration of other plug-ins among them is kept.

    Raises:
        PlanError: the plan cannot be read, or not be served.
        ServingError: vLLM is not installed, or the options name a plan as well.
    """
    check_plan(Plan.from_pretrained(plan))
    check_installed()
    rest, config = _taken(list(options))
    if KEY in config:
        raise ServingError(f"{OPTION} has {KEY!r} already: name the plan there or by --plan, not twice.")
    told = json.dumps({**config, KEY: {"plan": plan}})
    served = model
    if model in NAMES:  # its copy outlives this process, which becomes the server
        served = servable(model, Path(tempfile.mkdtemp(prefix="lookless-")) / model)
        rest = rest if NAME in rest else [NAME, model, *rest]
    return [*VLLM, "serve", served, *rest, OPTION, told]


def check_installed() -> None:
    """Raises: ServingError: vLLM is not here."""
    if find_spec("vllm") is None:
        raise ServingError("vLLM is not installed here: pip install '.[vllm]' in a checkout of lookless.")


def _taken(options: list[str]) -> tuple[list[str], dict[str, object]]:
    """``options`` without the additional configuration, and that."""
    for at, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name != OPTION:
            continue
        end = at + 1 if equals else at + 2
        value = value if equals else " ".join(options[at + 1 : end])
        try:
            config = json.loads(value)
        except json.JSONDecodeError as problem:
            raise ServingError(f"{OPTION} {value!r} is not JSON: {problem}.") from None
        if not isinstance(config, dict):
            raise ServingError(f"{OPTION} {value!r} is not a JSON object.")
        return options[:at] + options[end:], config
    return options, {}
