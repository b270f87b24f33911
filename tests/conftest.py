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

torch.manual_seed(0)


@pytest.fixture(scope="session")
def reference() -> lookless.Loaded:
    """The shipped model. Tests that put a plan on it take it off again."""
    return lookless.load_model("reference")
