"""An objective that keeps on disk what it has measured, so that what is killed measures nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer

from .. import files
from ..data import Samples
from ..errors import PlanError
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..plan import Plan
from ..provenance import Provenance
from ..version import __version__
from .front import written
from .objective import Effect, Objective

SCHEMA_VERSION = 1
SAVE_S = 20.0  #: seconds between two writings


class Measured(BaseModel):
    """One plan without its dead work, and what it did to each sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[LayerPlan, ...]
    effects: tuple[Effect, ...]

    @field_serializer("rows")
    def _written(self, rows: tuple[LayerPlan, ...]) -> list[dict[str, Any]]:
        return written(rows)


class Record(BaseModel):
    """What is on disk.

    Attributes:
        provenance: of the objective.
        seconds: that it took.
        plans: those that were run on every sample.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    provenance: Provenance
    seconds: float
    plans: tuple[Measured, ...]


class Recorded(Objective):
    """An :class:`Objective` that writes what it measures to ``path`` every :data:`SAVE_S` seconds, and begins with what
    is there.

    Args:
        loaded, samples, settings: as of :class:`Objective`.
        path: of the record, which is written whole or not at all.

    Attributes:
        earlier: seconds that what is remembered took.

    Raises:
        PlanError: at ``path`` is a record of another model, of other samples, or of another distance.
    """

    def __init__(self, loaded: Loaded, samples: Samples | Sequence[Samples], path: Path, **settings: Any) -> None:
        super().__init__(loaded, samples, **settings)
        self.earlier, self._path = 0.0, path
        if path.exists():
            self._recall(files.load(path, Record, PlanError, SCHEMA_VERSION))
        self._started = self._saved = perf_counter()

    def effects(self, plan: Plan, among: Sequence[int] | None = None) -> tuple[Effect, ...]:
        found = super().effects(plan, among)
        if perf_counter() - self._saved > SAVE_S:
            self.save()
        return found

    def save(self) -> None:
        """Write every plan that has been run on all samples."""
        known = {rows: effects for rows, effects in self._known.items() if len(effects) == len(self)}
        record = Record(
            provenance=self.provenance,
            seconds=self.earlier + perf_counter() - self._started,
            plans=tuple(
                Measured(rows=rows, effects=tuple(effects[index] for index in range(len(self))))
                for rows, effects in known.items()
                if rows != self._full
            ),
        )
        files.write_text(self._path, files.dump(record))
        self._saved = perf_counter()

    def _recall(self, record: Record) -> None:
        if record.provenance.model_copy(update={"lookless_version": __version__}) != self.provenance:
            raise PlanError(
                f"{self._path} is of another model or of other samples than this run: give another folder, or remove "
                f"the file."
            )
        self.earlier = record.seconds
        self._known |= {one.rows: dict(enumerate(one.effects)) for one in record.plans}
        self._counted |= self._known.keys()
