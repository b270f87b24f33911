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


class Counter:
    """Counts of one model, in a file of its own: a process may load several models, one after another."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(suffix=".rows", dir=folder)
        os.close(handle)
        self._numbers = np.memmap(path, dtype=np.int64, mode="w+", shape=(len(OPERATORS), len(KINDS)))

    def add(self, rows: Counts) -> None:
        """Add ``rows`` to the counts."""
        for i, operator in enumerate(OPERATORS):
            for j, kind in enumerate(KINDS):
                self._numbers[i, j] += rows[operator][kind]


def read(folder: Path) -> Counts:
    """The counts in ``folder``, summed over all workers."""
    total = np.zeros((len(OPERATORS), len(KINDS)), dtype=np.int64)
    for path in folder.glob("*.rows"):
        numbers = np.fromfile(path, dtype=np.int64)
        if numbers.size == total.size:
            total += numbers.reshape(total.shape)
    return {o: {k: int(total[i, j]) for j, k in enumerate(KINDS)} for i, o in enumerate(OPERATORS)}


def parse_metrics(metrics: str) -> Counts | None:
    """The counts that a :class:`Collector` reported on a ``/metrics`` page; None if there are none."""
    found: Counts = {operator: dict.fromkeys(KINDS, 0) for operator in OPERATORS}
    samples = re.findall(rf"^{NAME}_total{{(.*)}} (\S+)$", metrics, re.MULTILINE)
    for labels, value in samples:
        named = dict(re.findall(r'(\w+)="(\w+)"', labels))
        found[named["operator"]][named["kind"]] = int(float(value))
    return found if samples else None


class Collector:
    """For Prometheus: ``lookless_visual_rows_total{operator=..., kind=...}``, summed over all engines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        described = "Visual rows of all layers, by operator: skipped by the plan, or computed."
        family = CounterMetricFamily(NAME, described, labels=["operator", "kind"])
        for operator, kinds in read(self.folder).items():
            for kind, rows in kinds.items():
                family.add_metric([operator, kind], rows)
        yield family
