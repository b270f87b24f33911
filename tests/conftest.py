"""What every test shares."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network, and none may wait for one
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing by more, and on a busy machine they wait
os.environ.setdefault("COLUMNS", "200")  # tables and help texts are not to be folded

import pytest
import torch

import lookless
from lookless.runtime import calls

torch.manual_seed(0)


@pytest.fixture(scope="session")
def reference() -> lookless.Loaded:
    """The shipped model. Tests that put a plan on it take it off again."""
    return lookless.load_model("reference")


@pytest.fixture
def image(tmp_path):
    """The file of an image."""
    path = tmp_path / "chart.png"
    lookless.load_data("reference:chart", limit=1).items[0].images[0].save(path)
    return path


@pytest.fixture
def plan(tmp_path, reference):
    """The folder of a plan for the shipped model."""
    from lookless.runtime.families import geometry_of

    made = (
        lookless.Plan.full(geometry_of(reference.model))
        .at([5, 8, 11], attention=lookless.Skip())
        .made_by(method="test")
    )
    made.save_pretrained(tmp_path / "plan")
    return tmp_path / "plan"


@pytest.fixture
def apart(monkeypatch):
    """Each run of queries has an attention call of its own, so that what runs is to the FLOP what the formula prices:
    short runs share one, which scores a few keys for nothing and takes less time."""
    monkeypatch.setattr(calls, "FEW", 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: with several processes none of them is then left to the end."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)
