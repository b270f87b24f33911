"""What a folder holds: one plan, or a plan set (:class:`lookless.routing.PlanSet`), where one plan is wanted."""

from __future__ import annotations

from pathlib import Path

from .errors import PlanError

PLAN_FILE_NAME = "lookless_plan.json"
SET_FILE_NAME = "planset.json"


def holds_set(folder: str | Path) -> bool:
    """Whether ``folder`` holds a plan set and not one plan."""
    return (Path(folder) / SET_FILE_NAME).is_file()


def check_one_plan(folder: Path) -> None:
    """Raises: PlanError: ``folder`` holds a plan set."""
    if holds_set(folder):
        names = ", ".join(sorted(path.name for path in (folder / "plans").glob("*")))
        raise PlanError(
            f"{folder} holds a plan set, which gives each prompt a plan of its own, and one plan is wanted here (an "
            f"engine of vLLM runs one): name one of its plans, {folder}/plans/NAME with NAME one of {names}."
        )
