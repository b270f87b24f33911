"""At which price methods are compared: each paper's own, a share of the FLOPs, or a share of the measured time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import PlanError

Kind = Literal["paper", "flops", "time"]
_KINDS: tuple[Kind, ...] = ("paper", "flops", "time")


@dataclass(frozen=True)
class Setting:
    """One table of the document.

    Attributes:
        kind: the papers' own settings, or what is the same for all rows.
        share: of the stock model's prefill FLOPs, or of its decoder's prefill milliseconds at the larger batch.
    """

    kind: Kind
    share: float = 1.0

    @property
    def key(self) -> str:
        """How records name it: ``paper``, ``0.6``, ``time 0.8``."""
        return {"paper": "paper", "flops": f"{self.share:g}", "time": f"time {self.share:g}"}[self.kind]

    @property
    def title(self) -> str:
        """How a reader names it: ``60% of the FLOPs``."""
        price = {"paper": "the paper's setting", "flops": "of the FLOPs", "time": "of the prefill time"}[self.kind]
        return price if self.kind == "paper" else f"{self.share:.0%} {price}"

    @property
    def place(self) -> tuple[int, float]:
        """What sorts settings: the papers' own, then by FLOPs, then by time."""
        return _KINDS.index(self.kind), -self.share

    @classmethod
    def of(cls, key: str) -> Setting:
        """From :attr:`key`."""
        if key == "paper":
            return PAPER
        kind, _, share = key.rpartition(" ")
        return cls("time" if kind else "flops", float(share))


PAPER = Setting("paper")


def settings_of(budgets: Sequence[float], times: Sequence[float]) -> tuple[Setting, ...]:
    """The papers' own settings, then one for each of ``budgets`` and ``times``.

    Raises:
        PlanError: one is not a share between 0 and 1.
    """
    for share in budgets:
        if not 0 < share < 1:
            raise PlanError(f"a budget of {share:g} is no share of the FLOPs to keep: give more than 0, less than 1.")
    for share in times:
        if not 0 < share < 1:
            raise PlanError(f"a time of {share:g} is no share of the prefill's to keep: give more than 0, less than 1.")
    return (PAPER, *(Setting("flops", b) for b in budgets), *(Setting("time", t) for t in times))
