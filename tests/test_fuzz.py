"""A few hundred changed files for every reader; ``tests/fuzz`` tries as many as one likes."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "fuzz"))

from blind import run
from targets import READERS


@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_is_read_or_refused(tmp_path, reader):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert 0 < run(reader, 250, 0, tmp_path) < 250  # and no other error, of these and of those that are kept
