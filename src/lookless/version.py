"""The library's version, and those of what decides its results, in one place."""

from __future__ import annotations

from importlib import metadata

__version__ = "0.1.0"


def installed() -> dict[str, str]:
    """Versions of lookless, torch and transformers: what results were made with."""
    return {"lookless": __version__, **{name: metadata.version(name) for name in ("torch", "transformers")}}
