"""Methods of other packages: found by entry point, and a broken one stops nothing else."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint

import pytest

from helpers.scores import of
from lookless import Geometry, Keep, Plan, methods
from lookless.bench.timed_plans import timed_plans
from lookless.errors import PlanError
from lookless.methods import METHODS, Method


@methods.method
def squint(model: Geometry | int, *, layer: methods.Layer = 1) -> Plan:
    """Do not look at all."""
    return Plan.full(model).at([layer], keep=Keep(0))


def test_another_packages_method(monkeypatch):
    point = EntryPoint("squint", "anywhere:METHOD", methods.registry.GROUP)
    monkeypatch.setattr(methods.registry, "entry_points", lambda group: [point])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Method(squint, "0000.00000", "Squint", paper_layers=4))
    assert methods.find("squint").build(of(12)).layers[3].keep == Keep(0)
    assert timed_plans(of(12), ["squint"])["squint"].layers[3].keep == Keep(0)
    assert "squint" not in METHODS


def gone(model: Geometry | int) -> Plan:
    raise SystemExit(3)


def untold(model: Geometry | int, *, depth=1) -> Plan:
    return Plan.full(model).at([depth], keep=Keep(0))


@pytest.mark.parametrize(
    ("load", "complaint"),
    [
        (lambda: METHODS["fastv"], "adds a method 'fastv', and there is one of that name: rename it"),
        (lambda: squint, "is a function and should be a lookless.methods.Method"),
        (lambda: sys.exit(), "cannot be used (SystemExit: SystemExit): mend or uninstall it"),
        (lambda: Method(gone, "0000.00000", "Gone"), "cannot be used (SystemExit: 3)"),
        (
            lambda: Method(untold, "0000.00000", "Untold"),
            "cannot be used (TypeError: depth of untold has no annotation",
        ),
        (
            lambda: Method(squint, "0000.00000", "Squint", paper_layers=4, paper_arguments={"depth": 1}),
            "cannot be used (KeyError: 'depth')",
        ),
    ],
)
def test_a_broken_package_stops_nothing_else(monkeypatch, load, complaint):
    """It is named in a warning where all are listed, and refused where it is asked for."""
    points = [EntryPoint(name, "anywhere:METHOD", methods.registry.GROUP) for name in ("broken", "squint")]
    monkeypatch.setattr(methods.registry, "entry_points", lambda group: points)
    whole = Method(squint, "0000.00000", "Squint", paper_layers=4)
    monkeypatch.setattr(EntryPoint, "load", lambda self: whole if self.name == "squint" else load())
    told = f"the entry point 'broken' of lookless.methods (anywhere:METHOD) {complaint}"
    with pytest.warns(methods.PluginWarning, match=re.escape(told)):
        assert list(methods.all_methods()) == [*METHODS, "squint"]
    assert methods.find("squint") is whole
    assert methods.find("fastv") is METHODS["fastv"]
    with pytest.raises(PlanError, match=re.escape(complaint)):
        methods.find("broken")


def test_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "squinting.py").write_text(
        "from lookless.methods import Method, method\n"
        "from lookless import Plan, Keep\n"
        "@method\n"
        "def squint(model, *, layer: int = 2) -> Plan:\n"
        '    """Look away early."""\n'
        "    return Plan.full(model).at([layer], keep=Keep(0))\n"
        "METHOD = Method(squint, '0000.00000', 'Squint')\n"
    )
    info = tmp_path / "squinting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: squinting\nVersion: 1.0\n")
    points = info / "entry_points.txt"
    points.write_text("[lookless.methods]\nsquint = squinting:METHOD\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert methods.find("squint").build(of(12), layer=5).layers[5].keep == Keep(0)
    points.write_text("[lookless.methods]\nsquint = squinting:GONE\n")
    with pytest.raises(PlanError, match=r"'squint' of lookless\.methods \(squinting:GONE\) cannot be used") as caught:
        methods.find("squint")
    assert "\n" not in str(caught.value)
