"""The command line. Results go to standard output, progress to standard error.

Bad input is one sentence and exit code 2.
"""

from __future__ import annotations

# each adds its commands, in this order
# fmt: off
from . import model, plan, refit, route, flops, bench, optimize, search  # noqa: F401  # isort: skip
from . import comparison, experiment, report, doctor, certify, compare, lmms  # noqa: F401  # isort: skip
# fmt: on
from .common import app

__all__ = ["app"]
