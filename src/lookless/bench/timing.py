"""Time and memory, measured so that they can be compared: time in turn, in one process, after warm-up."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import ModelError
from ..loading import Loaded
from ..plan import Plan
from ..runtime.families import locate
from ..runtime.patching import applied


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each repeat, in the order run."""

    each_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return median(self.each_ms)


class Clock:
    """Times the calls of one module, or from where ``module`` begins to where ``until`` ends.

    Attributes:
        each_ms: of every call so far.
    """

    def __init__(self, module: torch.nn.Module, until: torch.nn.Module | None = None) -> None:
        self.each_ms: list[float] = []
        self._hooks = [
            module.register_forward_pre_hook(self._start, with_kwargs=True),
            (until or module).register_forward_hook(self._stop, with_kwargs=True),
        ]

    @property
    def ms(self) -> float:
        """Of the last call."""
        return self.each_ms[-1]

    @classmethod
    def of_layers(cls, layers: torch.nn.ModuleList) -> Clock:
        """Of a decoder's layers: the head and the final norm are the same under any plan, and in a model cut to a few
        layers would weigh more than they do."""
        return cls(layers[0], layers[-1])

    def _start(self, *_: Any) -> None:
        synchronise()
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        synchronise()
        self.each_ms.append((time.perf_counter() - self._started) * 1e3)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


class _Held(TorchDispatchMode):
    """Bytes of the tensors that were made since it was entered and are not freed yet, and the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._bytes: dict[int, int] = {}  # storages are told apart by their address while they live

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = operator(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self._bytes:  # a view holds nothing of its own
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
    """Most MiB of tensors held at once while ``call`` runs, above what was held before: the weights, the inputs.

    On a GPU as its allocator counts, with what operators need inside; elsewhere of every tensor an operator makes,
    which slows the call, so do not time it.
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
    """Where the system lends more memory than there is, it ends the process that takes it, without a word.

    Raises:
        ModelError: ``what`` takes more bytes than are free; not known, and so not raised, on other systems than Linux.
    """
    free = _free() if torch.device(device).type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if free is not None and needed > free:
        raise ModelError(
            f"{what} take {needed / 2**30:,.1f} GiB of memory or more, and {free / 2**30:,.1f} are free: ask for less."
        )


def _free() -> int | None:
    """Bytes that a process can still take, as Linux estimates it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * (found["MemAvailable"] + found.get("SwapFree", 0))


def synchronise() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def time_prefill(
    loaded: Loaded, inputs: dict[str, Any], plans: Sequence[Plan | None], *, repeats: int = 10, warm_up: int = 2
) -> list[Timing]:
    """Milliseconds of the decoder's prefill of ``inputs`` under each of ``plans`` (None is dense).

    All are run one after the other in every repeat, so that whatever else the machine does falls on all alike.
    """
    clock = Clock.of_layers(locate(loaded.model).layers)
    each: list[list[float]] = [[] for _ in plans]
    try:
        for repeat in range(warm_up + repeats):
            for plan, times in zip(plans, each, strict=True):
                with applied(loaded.model, plan):
                    loaded.model(**inputs, use_cache=True, logits_to_keep=1)
                if repeat >= warm_up:
                    times.append(clock.ms)
    finally:
        clock.remove()
    return [Timing(tuple(times)) for times in each]
