"""What an experiment finds: tables, a verdict on each of the paper's claims, and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from ..evaluation import Estimate
from ..markdown import markdown_table, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = Estimate | int | float | str | None
Verdict = Literal["holds", "does not hold", "cannot be shown at this size"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
OPEN: Verdict = "cannot be shown at this size"


class Table(BaseModel):
    """Raw values with their heads. A head that ends in ``%`` has shares below it, which are printed times 100.

    Attributes:
        digits: after the point, of numbers that are no shares.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""
    digits: int = 4

    def markdown(self) -> str:
        rows = [[self._printed(value, head) for value, head in zip(row, self.heads, strict=True)] for row in self.rows]
        note = f"\n\n{wrapped(self.note)}" if self.note else ""
        return f"### {self.title}\n\n{markdown_table(self.heads, rows)}{note}"

    def _printed(self, value: Value, head: str) -> str:
        scale, digits = (100, 1) if head.endswith("%") else (1, self.digits)
        if isinstance(value, Estimate):
            return (
                f"{scale * value.value:.{digits}f} ({scale * value.low:.{digits}f} to {scale * value.high:.{digits}f})"
            )
        if isinstance(value, float):
            return f"{scale * value:.{digits}f}"
        return "-" if value is None else str(value)


class Finding(BaseModel):
    """One claim of a paper beside what was measured.

    Attributes:
        where: in the paper: a table, a figure, a section.
        claim: what it says.
        measured: what was found here, with figures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    claim: str
    measured: str
    verdict: Verdict


class Report(BaseModel):
    """One experiment on one model.

    Attributes:
        experiment, paper: its name, and the arXiv id.
        settings: how it was run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str
    title: str
    paper: str
    model: str
    settings: dict[str, str | int]
    tables: tuple[Table, ...]
    findings: tuple[Finding, ...]

    def markdown(self, figure: str) -> str:
        """The page of the experiment, with the picture ``figure``."""
        told = "\n".join(f"* **{f.verdict}**: {f.claim} ({f.where}). Here: {f.measured}" for f in self.findings)
        about = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        parts = [
            f"# {self.experiment}: {self.title}",
            wrapped(f"arXiv {self.paper}, on {self.model}: {about}."),
            wrapped(told),
            f"![{self.title}]({figure})",
            *(table.markdown() for table in self.tables),
        ]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Found:
    """What the function of an experiment returns."""

    tables: tuple[Table, ...]
    findings: tuple[Finding, ...]
    figure: Figure


def at_least(found: Estimate | None, bound: float) -> Verdict:
    """Whether the value is ``bound`` or more: open while ``bound`` is inside the interval."""
    if found is None:
        return OPEN
    return HOLDS if found.low >= bound else FAILS if found.high < bound else OPEN


def above_zero(found: Estimate) -> Verdict:
    """Whether a difference is above zero: open while zero is inside the interval."""
    return HOLDS if found.low > 0 else FAILS if found.high < 0 else OPEN


def equal(found: Estimate, within: float) -> Verdict:
    """Whether a difference is at most ``within`` in either direction."""
    if -within <= found.low and found.high <= within:
        return HOLDS
    return FAILS if found.low > within or found.high < -within else OPEN


def shown(found: Estimate | None, sign: str = "") -> str:
    """As a reader of a sentence wants it: ``97.3 % (95.0 to 99.1)``."""
    if found is None:
        return "unknown, as no dense answer is right"
    return f"{100 * found.value:{sign}.1f} % ({100 * found.low:{sign}.1f} to {100 * found.high:{sign}.1f})"


def points(found: Estimate) -> str:
    return shown(found, "+").replace(" %", " points")
