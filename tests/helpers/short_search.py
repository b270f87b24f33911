"""``python -m helpers.short_search ...`` is ``lookless ...``, and tries few plans: for tests of whole runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from lookless.__main__ import main
from lookless.bench.latency import measure_latency

FEW = {
    "lookless.optimize.run.measure_latency": partial(measure_latency, repeats=1),
    "lookless.optimize.run.LADDER": (0.7,),
    "lookless.search.seeds.STEPS": 2,
    "lookless.bench.latency.CHECKED": 1,
}


def shorten(setattr_of: Callable[[str, Any], None]) -> None:
    """``setattr_of`` is a monkeypatch's."""
    for name, value in FEW.items():
        setattr_of(name, value)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        main()
