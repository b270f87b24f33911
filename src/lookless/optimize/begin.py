"""Where a run begins: in a new folder, or in one that is there, if it is of the same model and the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import AS_IS, Reading
from ..errors import PlanError
from ..loading import Loaded
from ..machine import processor
from ..runtime.families import geometry_of
from ..version import installed
from .folder import Folder, Run, Target
from .run import Optimization
from .split import Task


def start(
    loaded: Loaded,
    tasks: Sequence[Task],
    out: Path,
    target: Target,
    *,
    reading: Reading = AS_IS,
    confidence: float = 0.95,
    loss: str | None = None,
    engine: str = "transformers",
    fitted: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Optimization:
    """A run in the folder ``out``: a new one, or the one that is there, which is then for ``target``.

    Args:
        loaded: the model, without a plan on it.
        tasks: of :func:`lookless.optimize.split.split`.
        out: the run's folder.
        reading: how the data were read and scored.
        target, confidence: what the plan has to hold, and how sure that has to be.
        loss: ``lost`` or ``changed``; by default ``changed`` where some data have no answers.
        engine: ``transformers``, or ``vllm`` for plans that it can serve.
        fitted: fit maps of low rank, which layers may be given in place of what they skip.
        seed: of the draw from files, and of the search.
        settings: the other fields of :class:`Optimization`.

    Raises:
        PlanError: the folder holds a run of another model, of other data, or of data that were read otherwise.
    """
    if loss is None:
        loss = "lost" if all(any(sample.answer for sample in task.certification) for task in tasks) else "changed"
    parameter = next(loaded.model.parameters())
    run = Run(
        model=loaded.name,
        revision=loaded.revision,
        geometry=geometry_of(loaded.model),
        data=tuple(task.record for task in tasks),
        reading=reading,
        target=target,
        confidence=confidence,
        loss=loss,  # type: ignore[arg-type]
        engine=engine,  # type: ignore[arg-type]
        fitted=fitted,
        seed=seed,
        machine=processor(),
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        threads=torch.get_num_threads(),
        versions=installed(),
    )
    folder = Folder(out)
    if folder.run.exists():
        run = _resumed(Run.load(out), run, out)
    optimization = Optimization(loaded, tasks, folder, run, **settings)
    optimization.save()
    return optimization


def visit(loaded: Loaded, tasks: Sequence[Task], out: Path, target: Target, **settings: Any) -> Optimization:
    """As :func:`start`, for a search that leaves a run that is there what it is: its target, its result, its plan."""
    folder = Folder(out)
    record = Run.load(out) if folder.run.exists() else None
    return start(loaded, tasks, out, target, record=record, **settings)


def _resumed(old: Run, new: Run, out: Path) -> Run:
    """``new`` with what ``old`` has measured. Raises: PlanError: it is of another model or of other data."""
    for name in ("model", "geometry", "engine", "fitted", "dtype"):
        if getattr(old, name) != getattr(new, name):
            raise PlanError(
                f"{out} holds a run with {name} {getattr(old, name)}, and this one is with {getattr(new, name)}: give "
                f"another folder."
            )
    if old.reading != new.reading:
        given = [str(run.reading) or "nothing" for run in (old, new)]
        raise PlanError(
            f"{out} holds a run whose data were read with {given[0]}, and this one's are with {given[1]}: give the "
            f"options of before, or another folder."
        )
    parts = [[(d.data, d.calibration, d.tuning, d.selection) for d in run.data] for run in (old, new)]
    if parts[0] != parts[1]:
        names = [" and ".join(f"{d.data}" for d in run.data) for run in (old, new)]
        raise PlanError(
            f"{out} holds a run on {names[0]}, and this one is on {names[1]} or on other samples of it: give another "
            f"folder, or the data, seed and sizes of before."
        )
    return new.model_copy(update={"seconds": old.seconds})
