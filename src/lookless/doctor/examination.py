"""All sections, one after another; what fails is written down, and the rest goes on as far as it can."""

from __future__ import annotations

from pathlib import Path

from ..errors import LooklessError
from ..loading import Loaded, load_model
from ..plan import Plan
from ..runtime.families import geometry_of
from .comparison import fast_is_slow
from .environment import environment
from .prompt import prompt_of
from .sections import Section
from .spared import spared
from .support import family
from .weights import weights


def examine(
    model: str,
    plan_dir: str | None = None,
    image: Path | None = None,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    revision: str | None = None,
) -> list[Section]:
    """The environment, the model, its weights, the fast path, and a plan.

    Args:
        model, dtype, device, revision: as :func:`lookless.load_model`.
        plan_dir: a plan's folder, JSON file, or hub id.
        image: is asked about; a shipped chart by default.
    """
    found = [environment()]
    try:
        loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    except LooklessError as problem:
        return [*found, Section("Model", {"name": model, "refused": str(problem)}, "wrong")]
    found += [family(loaded), weights(loaded)]
    plan = None
    if plan_dir is not None:
        try:
            plan = Plan.from_pretrained(plan_dir)
            plan.check(geometry_of(loaded.model))
        except LooklessError as problem:
            found.append(Section("Your plan", {"refused": str(problem)}, "wrong"))
            plan = None
    return found + _run(loaded, plan, image)


def _run(loaded: Loaded, plan: Plan | None, image: Path | None) -> list[Section]:
    """What takes a prompt."""
    title, found = "Fast path = slow reference", list[Section]()
    try:
        prompt = prompt_of(loaded, image)
        found.append(fast_is_slow(loaded, prompt, plan))
        if plan is not None:
            title = "Your plan"
            found.append(spared(loaded, prompt, plan))
    except LooklessError as problem:
        found.append(Section(title, {"refused": str(problem)}, "wrong"))
    return found
