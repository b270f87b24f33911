"""What the wheel is without this checkout; ``make test-wheel`` builds, installs and tests it."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "WHEEL_PYTHON" in os.environ else ["test_*.py"]
