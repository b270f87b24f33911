"""How many visual rows skipped each operator: counted in workers, reported on the API server's ``/metrics``.

Workers and servers are separate processes, and the engine has no channel for a plug-in's numbers. So each worker keeps
its integers in a file of a few bytes, and a server reads these files at each query. The folder is named in the
environment, which all of them inherit, and not in vLLM's configuration: each API server makes its configuration anew,
and the hash of it, the key of compiled graphs, has to be the same at the next start.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

OPERATORS = ("attention", "ffn")
KINDS = ("skipped", "computed")
NAME = "lookless_visual_rows"
#: How a step with visual tokens ran: as a graph, or eagerly for a reason.
STEPS = COMPILED, EAGER, PIECES, FEW, OTHER, FAILED = (
    "compiled",
    "the engine compiles nothing",
    "the engine compiles in pieces",
    "fewer than two rows of a kind",
    "lengths that the graph is not for",
    "no graph could be made",
)
STEPS_NAME = "lookless_visual_steps"
FOLDER = "LOOKLESS_COUNTERS"


def ensure_folder() -> Path:
    """The folder that this process shares with those it starts: workers write their counts there, servers read them.

    The first process makes it, names it in the environment variable :data:`FOLDER`, which the processes it starts
    inherit, and removes it when it ends. It is called when a configuration with a plan is made, which is before vLLM
    starts a worker.
    """
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="lookless-")
        atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
    return Path(os.environ[FOLDER])


#: Visual rows, summed over layers: ``[operator][kind]``, of :data:`OPERATORS` and :data:`KINDS`.
Counts = dict[str, dict[str, int]]


ROWS = len(OPERATORS) * len(KINDS)
_SIZE = ROWS + len(STEPS)


class Counter:
    """Counts of one model, in a file of its own: a process may load several models, one after another."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(suffix=".rows", dir=folder)
        os.close(handle)
        self._numbers = np.memmap(path, dtype=np.int64, mode="w+", shape=(_SIZE,))

    def add(self, rows: Counts, step: str) -> None:
        """Add the ``rows`` of one step, and the step, one of :data:`STEPS`."""
        self._numbers[:ROWS] += [rows[operator][kind] for operator in OPERATORS for kind in KINDS]
        self._numbers[ROWS + STEPS.index(step)] += 1


def _total(folder: Path) -> np.ndarray:
    """The numbers in ``folder``, summed over all workers."""
    total = np.zeros(_SIZE, dtype=np.int64)
    for path in folder.glob("*.rows"):
        numbers = np.fromfile(path, dtype=np.int64)
        if numbers.size == total.size:
            total += numbers
    return total


def read(folder: Path) -> Counts:
    """The rows that were counted in ``folder``."""
    total = _total(folder)[:ROWS].reshape(len(OPERATORS), len(KINDS))
    return {o: {k: int(total[i, j]) for j, k in enumerate(KINDS)} for i, o in enumerate(OPERATORS)}


def read_steps(folder: Path) -> dict[str, int]:
    """The steps that were counted in ``folder``, by how they ran."""
    return dict(zip(STEPS, map(int, _total(folder)[ROWS:]), strict=True))


def parse_metrics(metrics: str) -> Counts | None:
    """The counts that a :class:`Collector` reported on a ``/metrics`` page; None if there are none."""
    found: Counts = {operator: dict.fromkeys(KINDS, 0) for operator in OPERATORS}
    samples = re.findall(rf"^{NAME}_total{{(.*)}} (\S+)$", metrics, re.MULTILINE)
    for labels, value in samples:
        named = dict(re.findall(r'(\w+)="(\w+)"', labels))
        found[named["operator"]][named["kind"]] = int(float(value))
    return found if samples else None


class Collector:
    """For Prometheus, summed over all engines: ``lookless_visual_rows_total{operator=..., kind=...}``, and
    ``lookless_visual_steps_total{run="compiled"}`` or ``{run="eager", reason=...}``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        described = "Visual rows of all layers, by operator: skipped by the plan, or computed."
        rows = CounterMetricFamily(NAME, described, labels=["operator", "kind"])
        for operator, kinds in read(self.folder).items():
            for kind, count in kinds.items():
                rows.add_metric([operator, kind], count)
        yield rows
        described = "Steps with visual tokens: compiled, or eager and why."
        steps = CounterMetricFamily(STEPS_NAME, described, labels=["run", "reason"])
        for how, count in read_steps(self.folder).items():
            steps.add_metric(["compiled", ""] if how == COMPILED else ["eager", how], count)
        yield steps
