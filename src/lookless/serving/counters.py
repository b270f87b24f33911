"""How many visual rows each operator was spared: counted in workers, told on the API server's ``/metrics``.

Workers and servers are processes of their own, and the engine has no channel for a plug-in's numbers, so each worker
keeps its integers in a file of a few bytes that a server reads when it is asked. The folder is told in the environment,
which all of them inherit, and not in vLLM's configuration: each API server makes that anew, and its hash, the key of
compiled graphs, is to be the same at the next start.
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


def folder() -> Path:
    """Where workers count and servers read; made by the first process that asks, and gone with it."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="lookless-")
        atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
    return Path(os.environ[FOLDER])


#: ``[operator][kind]``
Rows = dict[str, dict[str, int]]


class Counter:
    """Counts of one model, in a file of its own: a process may have several, one after another."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(suffix=".rows", dir=folder)
        os.close(handle)
        self._numbers = np.memmap(path, dtype=np.int64, mode="w+", shape=(len(OPERATORS), len(KINDS)))

    def add(self, rows: dict[str, dict[str, int]]) -> None:
        """``rows[operator][kind]`` visual rows more."""
        for i, operator in enumerate(OPERATORS):
            for j, kind in enumerate(KINDS):
                self._numbers[i, j] += rows[operator][kind]


def read(folder: Path) -> dict[str, dict[str, int]]:
    """``[operator][kind]``, summed over all workers."""
    total = np.zeros((len(OPERATORS), len(KINDS)), dtype=np.int64)
    for path in folder.glob("*.rows"):
        numbers = np.fromfile(path, dtype=np.int64)
        if numbers.size == total.size:
            total += numbers.reshape(total.shape)
    return {o: {k: int(total[i, j]) for j, k in enumerate(KINDS)} for i, o in enumerate(OPERATORS)}


def parsed(metrics: str) -> Rows | None:
    """What a :class:`Collector` told on a ``/metrics`` page; None if there is none."""
    found: Rows = {operator: dict.fromkeys(KINDS, 0) for operator in OPERATORS}
    samples = re.findall(rf"^{NAME}_total{{(.*)}} (\S+)$", metrics, re.MULTILINE)
    for labels, value in samples:
        named = dict(re.findall(r'(\w+)="(\w+)"', labels))
        found[named["operator"]][named["kind"]] = int(float(value))
    return found if samples else None


class Collector:
    """What Prometheus asks: ``lookless_visual_rows_total{operator=..., kind=...}``, of all engines together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        told = "Visual rows of all layers, by operator: skipped by the plan, or computed."
        family = CounterMetricFamily(NAME, told, labels=["operator", "kind"])
        for operator, kinds in read(self.folder).items():
            for kind, rows in kinds.items():
                family.add_metric([operator, kind], rows)
        yield family
