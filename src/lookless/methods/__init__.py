"""Published methods, each a pure function from scores (or from nothing but a geometry) to a plan."""

from __future__ import annotations

from .v_skip import v_skip

__all__ = ["v_skip"]
