"""What is measured of each method: the records that ``results.json`` holds."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ..geometry import Geometry
from .settings import Setting

SCHEMA_VERSION = 4


class Outcome(BaseModel):
    """One plan on one task.

    Attributes:
        method, setting, task: whose plan; :attr:`Setting.key`; on what.
        draw: number of the draw, from 0, for a method with random choices.
        kept: FLOPs run, as a share of the stock model's prefill; decoder only.
        kept_papers: as papers count: dead work is counted in plan and model; None where what runs is decided prompt by
            prompt.
        kept_live: dead work is counted in neither: FLOPs run, as a share of those run under liveness alone.
        right: per question, what the plan's answer scores, 1 for a right one; ``dense``: what the dense model's scores.
        same: per question, 1 where plan and dense model answer alike.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    setting: str
    task: str
    draw: int = 0
    kept: float
    kept_papers: float | None
    kept_live: float
    right: tuple[float, ...]
    dense: tuple[float, ...]
    same: tuple[float, ...]


class Rung(BaseModel):
    """The strength of a method whose prefill time is nearest to a setting's.

    Attributes:
        strength: from 0 (nothing) to 1 (all it can), as :attr:`lookless.methods.Method.strength` has it.
        time: its prefill time at the larger batch when it was chosen, as a share of the stock model's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float
    time: float


class Results(BaseModel):
    """All outcomes on one model so far, and their times.

    Attributes:
        times: ``method, setting`` to its decoder's prefill time on the first task, as a share of the stock model's, by
            batch.
        dense_ms: milliseconds of the stock model's, by batch.
        rungs: ``method, setting`` to what was chosen for a setting of equal time.
        missed: ``method, setting`` to why there is no plan, or how near the setting its nearest plan is.
        notes: ``method, setting`` to a note on the row.
        hashes: by task, of the calibration samples and of the questions, which share no prompt.
        metrics: by task, by which its answers are scored; in files of an older lookless it is ``exact``.
        plans: by name, :attr:`lookless.Plan.hash` of those that were given.
        versions: of lookless, torch and transformers; empty in files of an older lookless.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: str
    geometry: Geometry
    questions: int
    samples: int
    outcomes: tuple[Outcome, ...] = ()
    times: dict[str, dict[int, float]] = {}
    dense_ms: dict[int, float] = {}
    rungs: dict[str, Rung] = {}
    missed: dict[str, str] = {}
    notes: dict[str, str] = {}
    machine: str = ""
    hashes: dict[str, tuple[str, str]] = {}
    metrics: dict[str, str] = {}
    plans: dict[str, str] = {}
    versions: dict[str, str] = {}

    def of(self, method: str, setting: Setting) -> tuple[Outcome, ...]:
        return tuple(o for o in self.outcomes if (o.method, o.setting) == (method, setting.key))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(o.task for o in self.outcomes))

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Those that an outcome is at, in the document's order."""
        return tuple(sorted({Setting.of(o.setting) for o in self.outcomes}, key=lambda setting: setting.place))

    def having(self, field: str, key: str, value: object) -> Results:
        """These results with one more entry in a dictionary of theirs."""
        return self.model_copy(update={field: {**getattr(self, field), key: value}})


def row_key(method: str, setting: Setting) -> str:
    """By which :class:`Results` keeps what belongs to one row."""
    return f"{method}, {setting.key}"


def method_and_setting(key: str) -> tuple[str, Setting]:
    """From :func:`row_key`."""
    method, _, setting = key.partition(", ")
    return method, Setting.of(setting)


def of_task(outcomes: Sequence[Outcome], task: str) -> tuple[Outcome, ...]:
    return tuple(o for o in outcomes if o.task == task)
