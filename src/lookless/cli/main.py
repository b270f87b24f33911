"""The command line. Results go to standard output, progress to standard error.

Bad input is one sentence and exit code 2.
"""

from __future__ import annotations

# each adds its commands, in this order
from .common import app

__all__ = ["app"]
