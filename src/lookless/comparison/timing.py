"""Prefill times: those of the rows, and those by which methods are brought to one time.

All that is compared is timed in turn, in one process, as a share of the stock model timed beside it. Only shares of one
call are kept, so that steps may run at different hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..bench.timing import shares_of_stock, with_stock
from ..errors import LooklessError
from ..progress import track
from .contestants import Contestant
from .entry import STOCK, Entry, time_entries
from .results import Results, Rung, method_and_setting, row_key
from .settings import PAPER, Setting
from .workspace import Workspace

BATCHES = (1, 8)
ROUNDS = 5  #: strengths of each method timed for a setting
BETWEEN = 6  #: entries timed between two timings of the stock model


def shares(
    work: Workspace, entries: Sequence[Entry], batch: int, *, repeats: int, warm_up: int
) -> tuple[list[float], float]:
    """Prefill time on the first task's first ``batch`` prompts, as a share of the stock model's, and its milliseconds.

    The stock model is timed again after every few entries: :func:`lookless.bench.timing.shares_of_stock`.
    """
    samples = work.test[work.tasks[0]].items[:batch]
    order = with_stock(STOCK, entries, BETWEEN)
    timed = time_entries(work.loaded, samples, order, repeats=repeats, warm_up=warm_up)
    return shares_of_stock(timed, BETWEEN)


def entry_at(results: Results, work: Workspace, who: Contestant, setting: Setting, task: str, draw: int = 0) -> Entry:
    """What a row runs on ``task``; for a setting of equal time, its rung must be known.

    Raises:
        LooklessError: there is nothing to run, with the reason.
    """
    if setting == PAPER:
        return who.at_paper(work, task, draw)
    if setting.kind == "flops":
        return who.near(work, task, setting.share, draw)
    return who.at(work, task, results.rungs[row_key(who.name, setting)].strength, draw)


def time_rows(results: Results, work: Workspace, contestants: Mapping[str, Contestant]) -> Results:
    """``results`` with the times of every row that has none."""
    rows = dict.fromkeys(row_key(o.method, Setting.of(o.setting)) for o in results.outcomes)
    keys = [key for key in rows if key not in results.times and method_and_setting(key)[0] in contestants]
    if not keys:
        return results
    named = [(contestants[name], setting) for name, setting in map(method_and_setting, keys)]
    entries = [entry_at(results, work, who, setting, work.tasks[0]) for who, setting in named]
    for batch in BATCHES:
        found, dense = shares(work, entries, batch, repeats=7, warm_up=2)
        times = {key: {**results.times.get(key, {}), batch: time} for key, time in zip(keys, found, strict=True)}
        results = results.model_copy(
            update={"times": {**results.times, **times}, "dense_ms": {**results.dense_ms, batch: dense}}
        )
    return results


def choose_rungs(
    results: Results, work: Workspace, contestants: Iterable[Contestant], settings: Iterable[Setting]
) -> Results:
    """``results`` with a rung for every row of the ``settings`` of equal time, or the reason why there is none."""
    climbs: dict[str, _Climb] = {}
    for setting in (setting for setting in settings if setting.kind == "time"):
        open_rows = []
        for who in contestants:
            key = row_key(who.name, setting)
            if key in results.rungs or key in results.missed:
                continue
            try:
                climbs.setdefault(who.name, _Climb(who, work))
            except LooklessError as problem:
                results = results.having("missed", key, str(problem))
            else:
                open_rows.append(who.name)
        _climb([climbs[name] for name in open_rows], work, setting)
        for name in open_rows:
            results = results.having("rungs", row_key(name, setting), climbs[name].nearest(setting.share))
    return results


class _Climb:
    """One method's way to the strength of a given time: the FLOPs that each strength keeps, and times so far."""

    def __init__(self, who: Contestant, work: Workspace) -> None:
        self.who, self.work = who, work
        self.kept = who.prices(work, work.tasks[0])
        self.times: dict[float, float] = {}

    def next(self, share: float) -> tuple[float, Entry] | None:
        """The strength to time next, and what it runs; None where the best guess has been timed."""
        while self.kept:
            strength = self._guess(share)
            if strength in self.times:
                return None
            try:
                return strength, self.who.at(self.work, self.work.tasks[0], strength)
            except LooklessError:  # a search that finds nothing this cheap
                del self.kept[strength]
        return None

    def _guess(self, share: float) -> float:
        """Where time would meet ``share`` if it were linear in FLOPs: between the nearest timings on both sides, or,
        where all are on one side, through the nearest and the stock model."""
        wanted = share
        points = sorted((time, self.kept[strength]) for strength, time in self.times.items())
        below, above = ([p for p in points if (p[0] <= share) is side] for side in (True, False))
        if below and above:
            (low, few), (high, many) = below[-1], above[0]
            wanted = few + (many - few) * (share - low) / (high - low)
        elif points:
            time, kept = below[-1] if below else above[0]
            wanted = 1 - (1 - share) * (1 - kept) / (1 - time) if time < 1 else 0.0
        return min(self.kept, key=lambda strength: abs(self.kept[strength] - wanted))

    def nearest(self, share: float) -> Rung:
        strength = min(self.times, key=lambda strength: abs(self.times[strength] - share))
        return Rung(strength=strength, time=self.times[strength])


def _climb(climbs: Sequence[_Climb], work: Workspace, setting: Setting) -> None:
    """Time a few strengths of each, all methods in turn in every round."""
    for _ in track(range(ROUNDS), f"strengths at {setting.title}", True):
        chosen = [(climb, step) for climb in climbs if (step := climb.next(setting.share)) is not None]
        if not chosen:
            return
        entries = [entry for _, (_, entry) in chosen]
        found, _ = shares(work, entries, max(BATCHES), repeats=5, warm_up=1)
        for (climb, (strength, _)), time in zip(chosen, found, strict=True):
            climb.times[strength] = time
