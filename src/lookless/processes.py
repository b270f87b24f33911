"""Several processes on one job: the first leads, and the others do what it asks.

``accelerate launch`` and ``torchrun`` start one command several times, and tell each process by ``RANK`` and
``WORLD_SIZE`` which of how many it is. Here the first alone reads options, decides, shows progress and writes. The
others load the same model and wait for tasks. So no two processes can decide differently, and what nobody has split
runs in the first, as if it were alone. One process is a team of one: nothing is sent, and torch.distributed is not
imported.
"""

from __future__ import annotations

import importlib
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from .errors import LooklessError

Found = TypeVar("Found")

#: The others wait so long for a task: the first may be timing, or fitting, or asking for a disk.
PATIENCE = timedelta(days=30)


@dataclass
class Worker:
    """What a process works with.

    Attributes:
        loaded: the model here.
        held: what a task has left here for later ones, by key.
    """

    loaded: Any = None
    held: dict[str, Any] = field(default_factory=dict)


#: Runs in one process, on its share of the work: a function of a module, so that it can be sent.
Task = Callable[[Worker, Any], Any]


@dataclass(frozen=True)
class _Message:
    """What the first process sends another: the task, its share, and the keys of what may be forgotten."""

    task: Task
    share: Any
    released: tuple[str, ...]


@dataclass(frozen=True)
class _Outcome:
    value: Any = None
    error: Exception | None = None


@dataclass
class Team:
    """Processes with the same model, as the first one sees them.

    Attributes:
        worker: the first process, which works too.
        size: how many they are.
        is_answered: no process is at work on a task. Where the first one is interrupted they may be, and cannot be
            told to end; they end when its connection does.
    """

    worker: Worker
    size: int = 1
    is_answered: bool = True
    _released: list[str] = field(default_factory=list)

    def run(self, task: Task, shares: Sequence[Any]) -> list[Any]:
        """What ``task`` returns in each process for its own of ``shares``, all at once.

        Raises: what the task raises; of several processes, in the first of them.
        """
        if self.size == 1:
            return [task(self.worker, shares[0])]
        released, self._released = tuple(self._released), []
        self.is_answered = False
        _scatter([_Message(task, share, released) for share in shares])
        outcomes = _gather(_outcome(task, self.worker, shares[0]), self.size)
        self.is_answered = True
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [outcome.value for outcome in outcomes]

    def release(self, key: str) -> None:
        """Forget what tasks have left under ``key``."""
        self.worker.held.pop(key, None)
        self._released.append(key)


#: The processes of this command, if there are several.
_team: Team | None = None


def team_of(loaded: Any) -> Team:
    """The processes that have the model ``loaded``: all of the command if it was loaded by :func:`everywhere`."""
    return _team if _team is not None and _team.worker.loaded is loaded else Team(Worker(loaded))


def everywhere(load: Callable[..., Found], *given: Any) -> Found:
    """``load(*given)``, in the other processes too: the model that a team works with.

    Raises: what ``load`` raises, here or there.
    """
    if _team is None:
        return load(*given)
    _team.run(_load, [(load, given)] * _team.size)
    return _team.worker.loaded  # type: ignore[no-any-return]


def _load(worker: Worker, share: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
    load, given = share
    worker.loaded = load(*given)


def place(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which process this is, from 0, and of how many: (0, 1) where nothing says so.

    Raises:
        LooklessError: what says so is no such number.
    """
    rank, size = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None or size is None:
        return 0, 1
    if not (rank.isdigit() and size.isdigit() and int(rank) < int(size)):
        raise LooklessError(
            f"the environment says that this is process RANK={rank} of WORLD_SIZE={size}: start several processes with "
            f"accelerate launch or torchrun, or unset both."
        )
    return int(rank), int(size)


def own_device(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """``cuda`` as the GPU of this process; any other device as it is."""
    return f"cuda:{environment['LOCAL_RANK']}" if name == "cuda" and place(environment)[1] > 1 else name


@contextmanager
def leading(size: int) -> Iterator[None]:
    """In the first of ``size`` processes: what is split inside is done by all, which end when it ends."""
    global _team
    with _group():
        _team = team = Team(Worker(), size)
        try:
            yield
        finally:
            _team = None
            if team.is_answered:
                _scatter([None] * size)


def follow() -> None:
    """In any other process: do what the first one asks, until it ends.

    Raises:
        LooklessError: it was killed.
    """
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # the first shows how far loading is
    worker = Worker()
    with _group():
        while True:
            message = _scattered()
            if message is None:
                return
            _gather(_answered(worker, message))


def _answered(worker: Worker, message: _Message) -> _Outcome:
    for key in message.released:
        worker.held.pop(key, None)
    return _outcome(message.task, worker, message.share)


def _outcome(task: Task, worker: Worker, share: Any) -> _Outcome:
    try:
        return _Outcome(task(worker, share))
    except Exception as error:
        return _Outcome(error=sendable(error))


def sendable(error: Exception) -> Exception:
    """``error``, or if it cannot be sent to another process one that tells all of it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


@contextmanager
def _group() -> Iterator[None]:
    """The processes are connected while the block runs, and no longer: what stays of a group, its threads, may abort
    a process that ends.
    """
    import torch.distributed as dist

    # Its functions hold, as defaults, the group that there is at its import, and Transformers imports it with a model.
    importlib.import_module("torch.distributed.nn.functional")

    with _reached():
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as problem:
        raise LooklessError(
            "another process of this run has ended, or cannot be reached: start it again, and it goes on from what is "
            "finished."
        ) from problem


def _scatter(messages: Sequence[_Message | None]) -> None:
    import torch.distributed as dist

    with _reached():
        dist.scatter_object_list([None], list(messages), src=0)


def _scattered() -> _Message | None:
    import torch.distributed as dist

    received: list[Any] = [None]
    with _reached():
        dist.scatter_object_list(received, None, src=0)
    return received[0]  # type: ignore[no-any-return]


def _gather(outcome: _Outcome, size: int = 0) -> list[_Outcome]:
    """The outcomes of all processes in the first one, which knows their number; none in the others."""
    import torch.distributed as dist

    found: list[Any] = [None] * size
    with _reached():
        dist.gather_object(outcome, found if size else None, dst=0)
    return found
