"""``python -m lookless``, and the ``lookless`` command."""

from __future__ import annotations

from .cli import app


def main() -> None:
    app(prog_name="lookless")


if __name__ == "__main__":
    main()
