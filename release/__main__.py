"""A release, up to what cannot be taken back: ``make release VERSION=x.y.z``."""

from __future__ import annotations

import sys
from pathlib import Path

from .steps import ReleaseError, release

try:
    print(release(Path.cwd(), *sys.argv[1:]))
except ReleaseError as problem:
    print(f"No release: {problem}", file=sys.stderr)
    sys.exit(2)
