"""What stock is timed beside: methods at their papers' settings, after a plan that skips what nobody reads."""

from __future__ import annotations

from collections.abc import Iterable

from ..geometry import Geometry
from ..methods import find
from ..plan import Plan

LIVENESS = "liveness alone"


def timed_plan(name: str, geometry: Geometry) -> Plan:
    """That of a method, or :data:`LIVENESS`: what every plan saves without doing anything."""
    return Plan.full(geometry).live() if name == LIVENESS else find(name).sample(geometry)


def timed_plans(geometry: Geometry, names: Iterable[str]) -> dict[str, Plan]:
    """:data:`LIVENESS`, and then the methods of ``names``."""
    return {name: timed_plan(name, geometry) for name in (LIVENESS, *names)}
