"""``python -m lookless``, and the ``lookless`` command."""

from __future__ import annotations

import os

from .cli.main import app


def main() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell of every extra that is not installed
    app(prog_name="lookless")


if __name__ == "__main__":
    main()
