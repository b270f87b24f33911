"""Work on many items: split over processes, and kept as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from .processes import Team, Worker, sendable
from .progress import track
from .unfinished import Unfinished

#: Yields a result for each item, in their order. A function of a module, with what it needs bound by ``partial``.
Work = Callable[[Worker, Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True)
class _Share:
    """The items of one process.

    Attributes:
        process: which one, from 0.
        items: with their places among all.
    """

    process: int
    items: Sequence[tuple[int, Any]]


@dataclass(frozen=True)
class _Done:
    """Results by place; and what went wrong, at which place."""

    results: dict[int, Any]
    failed: tuple[int, Exception] | None = None


def each(
    team: Team,
    items: Sequence[Any],
    work: Work,
    *,
    what: str = "",
    progress: bool = False,
    kept: Unfinished | None = None,
    at: Sequence[int] | None = None,
) -> list[Any]:
    """The result of ``work`` for each of ``items``, in their order: the same, however many processes there are.

    Args:
        team: who does it.
        what, progress: the progress bar's words, and whether there is one.
        kept: where results, which are plain JSON then, are kept as they come, and where those of a run that was killed
            are found.
        at: the process of each item; by default they take turns.

    Raises: what ``work`` raises, for the first item that fails.
    """
    known, _ = ({}, 0.0) if kept is None else kept.known(len(items))
    missing = [place for place in range(len(items)) if place not in known]
    if not missing:
        return [known[place] for place in range(len(items))]
    owner = {place: turn % team.size if at is None else at[place] for turn, place in enumerate(missing)}
    shares = [
        _Share(process, [(place, items[place]) for place in missing if owner[place] == process])
        for process in range(team.size)
    ]
    done = team.run(partial(_do, work=work, what=what, progress=progress, kept=kept), shares)
    failed = [one.failed for one in done if one.failed is not None]
    if failed:
        raise min(failed, key=lambda pair: pair[0])[1]
    for one in done:
        known |= one.results
    return [known[place] for place in range(len(items))]


def _do(worker: Worker, share: _Share, *, work: Work, what: str, progress: bool, kept: Unfinished | None) -> _Done:
    results: dict[int, Any] = {}
    items: Iterable[Any] = [item for _, item in share.items]
    if not items:
        return _Done(results)
    made = work(worker, track(items, what, progress) if progress and share.process == 0 else items)
    for place, _ in share.items:
        started = perf_counter()
        try:
            results[place] = next(made)
        except Exception as error:
            return _Done(results, (place, sendable(error) if share.process else error))
        if kept is not None:
            kept.add(place, results[place], perf_counter() - started)
    for _ in made:  # to its end, where it cleans up
        pass
    return _Done(results)
