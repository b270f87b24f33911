"""``lookless serve``: the command line of vLLM's server, for a model under a plan."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import ServingError
from ..plan import Plan
from ..reference import NAMES
from .settings import KEY, check_plan, keeps_text_apart
from .shipped import servable

#: The words that run vLLM's own command line in this environment.
VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")
OPTION = "--additional-config"
NAME = "--served-model-name"
#: vLLM's option, on without a word, which some plans cannot be served with.
PREFIXES = "enable-prefix-caching"


def command(model: str, plan: str, options: Sequence[str]) -> list[str]:
    """The words to execute.

    Args:
        model: a shipped model, a folder, or a hub id.
        plan: a plan's folder, JSON file, or hub id.
        options: vLLM's own; configurations of other plug-ins in ``--additional-config`` are kept.

    Raises:
        PlanError: the plan cannot be read, or vLLM cannot serve it.
        ServingError: vLLM is not installed, or the options name a plan too.
    """
    return command_for(model, plan, Plan.from_pretrained(plan), options)


def command_for(model: str, path: str, plan: Plan, options: Sequence[str]) -> list[str]:
    """As :func:`command`, of a ``plan`` that was read from ``path``."""
    check_plan(plan)
    check_installed()
    rest, config = _split_config(list(options))
    if KEY in config:
        raise ServingError(f"{OPTION} has {KEY!r} already: name the plan there or by --plan, not twice.")
    merged = json.dumps({**config, KEY: {"plan": path}})
    if keeps_text_apart(plan) and not any(word.endswith(PREFIXES) for word in rest):
        rest = [*rest, f"--no-{PREFIXES}"]
    served = model
    if model in NAMES:  # its copy outlives this process, which becomes the server
        served = servable(model, Path(tempfile.mkdtemp(prefix="lookless-")) / model)
        rest = rest if NAME in rest else [NAME, model, *rest]
    return [*VLLM, "serve", served, *rest, OPTION, merged]


def check_installed() -> None:
    """Raises: ServingError: vLLM is not installed in this environment."""
    if find_spec("vllm") is None:
        raise ServingError("vLLM is not installed here: pip install '.[vllm]' in a checkout of lookless.")


def _split_config(options: list[str]) -> tuple[list[str], dict[str, object]]:
    """``options`` without ``--additional-config``, and its value, parsed; ``{}`` if it is not among them.

    Raises:
        ServingError: the value is not a JSON object.
    """
    for at, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name != OPTION:
            continue
        end = at + 1 if equals else at + 2
        value = value if equals else " ".join(options[at + 1 : end])
        try:
            config = json.loads(value)
        except json.JSONDecodeError as problem:
            raise ServingError(f"{OPTION} {value!r} is not JSON: {problem}.") from problem
        if not isinstance(config, dict):
            raise ServingError(f"{OPTION} {value!r} is not a JSON object.")
        return options[:at] + options[end:], config
    return options, {}
