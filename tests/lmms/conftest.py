"""Tests of the plug-in inside lmms-eval; ``make test-lmms`` runs them, and they are not there without lmms-eval."""

from __future__ import annotations

import os
from importlib.util import find_spec
from tempfile import TemporaryDirectory

_cache = TemporaryDirectory(prefix="lookless-lmms-")  # a run that was killed leaves no lock that another would wait for

collect_ignore_glob = [] if find_spec("lmms_eval") else ["test_*.py"]
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _cache.name
