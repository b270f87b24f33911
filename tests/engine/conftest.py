"""Tests of the plug-in inside real engines; ``make test-vllm`` runs them, and they are not there without vLLM."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]
