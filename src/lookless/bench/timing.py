"""Time and memory that can be compared: timed in turn, in one process, after a warm-up."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import ModelError
from ..loading import Loaded
from ..plan import Plan
from ..progress import track
from ..runtime.families import locate
from ..runtime.patching import reapplied
from ..runtime.readers import blind


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each repeat, in the order run."""

    values_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return median(self.values_ms)


class Clock:
    """Times the calls of ``module``, or from the start of ``module`` to the end of ``until``.

    Attributes:
        values_ms: milliseconds of every call so far.
    """

    def __init__(self, module: torch.nn.Module, until: torch.nn.Module | None = None) -> None:
        self.values_ms: list[float] = []
        self._hooks = [
            module.register_forward_pre_hook(self._start, with_kwargs=True),
            (until or module).register_forward_hook(self._stop, with_kwargs=True),
        ]

    @property
    def ms(self) -> float:
        """Of the last call."""
        return self.values_ms[-1]

    @classmethod
    def of_layers(cls, layers: torch.nn.ModuleList) -> Clock:
        """Of a decoder's layers, without head and final norm: these are the same under any plan, and in a model cut to
        a few layers would have too large a share."""
        return cls(layers[0], layers[-1])

    def _start(self, *_: Any) -> None:
        synchronise()
        self._started = time.perf_counter()

    @blind
    def _stop(self, *_: Any) -> None:
        synchronise()
        self.values_ms.append((time.perf_counter() - self._started) * 1e3)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


class _Held(TorchDispatchMode):
    """Tracks live and peak bytes of tensors allocated inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._bytes: dict[int, int] = {}  # by address, which is unique while a storage lives

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = operator(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self._bytes:  # a view has no memory of its own
                self._bytes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, key)
        return made

    def _freed(self, key: int) -> None:
        self.now -= self._bytes.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_mib(call: Callable[[], Any], device: torch.device) -> float:
    """Peak MiB of tensors while ``call`` runs, above what was held before (weights, inputs).

    On a GPU as its allocator counts, with the operators' own workspaces. Elsewhere of every tensor that an operator
    makes; that slows the call, so do not time it.
    """
    if device.type == "cuda":
        synchronise()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronise()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with _Held() as held:
        call()
    return held.most / 2**20


def check_memory(needed: int, device: str, what: str) -> None:
    """Refuse before allocating: a system that overcommits memory kills the process without a message.

    Raises:
        ModelError: ``what`` needs more bytes than are free. On a CPU that is known on Linux only.
    """
    free = _free() if torch.device(device).type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if free is not None and needed > free:
        raise ModelError(
            f"{what} take {needed / 2**30:,.1f} GiB of memory or more, and {free / 2**30:,.1f} are free: ask for less."
        )


def _free() -> int | None:
    """Bytes that a process can still allocate, as Linux estimates it; None on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * (found["MemAvailable"] + found.get("SwapFree", 0))


def synchronise() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


_Call = TypeVar("_Call")


def with_stock(stock: _Call, others: Sequence[_Call], every: int) -> list[_Call]:
    """``others`` in their order, with ``stock`` before each ``every`` of them and at the end: what is timed in turn."""
    groups = [others[at : at + every] for at in range(0, len(others), every)]
    return [call for group in groups for call in (stock, *group)] + [stock]


def shares_of_stock(timed: Sequence[Timing], every: int) -> tuple[list[float], float]:
    """The times of :func:`with_stock`: of each of the others as a share of the stock model's, and that in milliseconds.

    What else the machine does comes and goes, so a share is the median over repeats of the ratio to the mean of the
    stock timings before and after.
    """
    stock = [*timed[: -1 : every + 1], timed[-1]]
    others = [one for place, one in enumerate(timed[:-1]) if place % (every + 1)]
    shares = []
    for place, mine in enumerate(others):
        before, after = stock[place // every], stock[place // every + 1]
        each = zip(mine.values_ms, before.values_ms, after.values_ms, strict=True)
        shares.append(median(2 * ms / (a + b) for ms, a, b in each))
    return shares, median(ms for one in stock for ms in one.values_ms)


@torch.no_grad()
def time_prefill(
    loaded: Loaded, inputs: dict[str, Any], plans: Sequence[Plan | None], *, repeats: int = 10, warm_up: int = 2
) -> list[Timing]:
    """Milliseconds of the decoder's prefill of ``inputs`` under each of ``plans``.

    Plans run one after the other in every repeat, so that other load on the machine affects all of them.

    Args:
        loaded: the model, without a plan on it.
        inputs: the arguments of one call.
        plans: None is the stock model.
        repeats: timings of each plan.
        warm_up: repeats before them that are not timed.
    """

    calls = _prefills(loaded, inputs, plans)
    return time_in_turn(locate(loaded.model).layers, calls, repeats=repeats, warm_up=warm_up)


def _prefills(loaded: Loaded, inputs: dict[str, Any], plans: Sequence[Plan | None]) -> list[Callable[[], None]]:
    """A function for each of ``plans`` that runs a prefill under it."""

    def prefill(put: Callable[[], AbstractContextManager[Any]]) -> None:
        with put():
            loaded.model(**inputs, use_cache=True, logits_to_keep=1)

    return [partial(prefill, reapplied(loaded.model, plan)) for plan in plans]


@torch.no_grad()
def prefill_shares(
    loaded: Loaded,
    inputs: dict[str, Any],
    plans: Sequence[Plan],
    *,
    every: int,
    repeats: int,
    what: str,
    progress: bool,
) -> tuple[list[float], float]:
    """The prefill time of each of ``plans`` as a share of the stock model's, and that in milliseconds; medians.

    Args:
        loaded, inputs: as in :func:`time_prefill`.
        plans: timed in turn.
        every: plans between two timings of the stock model.
        repeats: rounds through all of them; one more, before, warms the caches.
        what, progress: the progress bar on standard error, and whether there is one.
    """
    calls, rounds, stocks = _prefills(loaded, inputs, with_stock(None, list(plans), every)), [], []
    layers = locate(loaded.model).layers
    for index in track(range(repeats + 1), what, progress):
        shares, stock_ms = shares_of_stock(time_in_turn(layers, calls, repeats=1, warm_up=0), every)
        if index:
            rounds.append(shares)
            stocks.append(stock_ms)
    return [median(shares) for shares in zip(*rounds, strict=True)], median(stocks)


def time_in_turn(
    layers: torch.nn.ModuleList, calls: Sequence[Callable[[], None]], *, repeats: int, warm_up: int
) -> list[Timing]:
    """Milliseconds that a decoder's ``layers`` take in each of ``calls``, made one after the other in every repeat.

    The first ``warm_up`` repeats are not timed.
    """
    clock = Clock.of_layers(layers)
    found: list[list[float]] = [[] for _ in calls]
    try:
        for repeat in range(warm_up + repeats):
            for call, times in zip(calls, found, strict=True):
                call()
                if repeat >= warm_up:
                    times.append(clock.ms)
    finally:
        clock.remove()
    return [Timing(tuple(times)) for times in found]
