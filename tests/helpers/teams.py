"""Several processes in one: each has a worker of its own, and whatever they send is pickled."""

from __future__ import annotations

import pickle
from typing import Any

from lookless import processes
from lookless.processes import Team, Worker


def pretend(monkeypatch: Any, loaded: Any, size: int) -> list[Worker]:
    """Until the test ends ``size`` processes work with ``loaded``, and take turns; the workers, the first one's too."""
    team = Team(Worker(loaded), size)
    workers = [team.worker, *(Worker(loaded) for _ in range(size - 1))]
    sent: list[Any] = []

    def scatter(messages: Any) -> None:
        sent[:] = pickle.loads(pickle.dumps(messages))

    def gather(outcome: Any, count: int) -> list[Any]:
        assert count == size
        pairs = zip(workers[1:], sent[1:], strict=True)
        others = [processes._answered(worker, message) for worker, message in pairs]
        return [outcome, *pickle.loads(pickle.dumps(others))]

    monkeypatch.setattr(processes, "_team", team)
    monkeypatch.setattr(processes, "_scatter", scatter)
    monkeypatch.setattr(processes, "_gather", gather)
    return workers
