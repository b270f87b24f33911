"""Every command that a help text shows runs as it is written, in a folder where what it names is there."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from helpers import user
from helpers.pages import run_folder
from lookless.cli.main import app
from lookless.methods import METHODS


def commands(group, *path: str):
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


EXAMPLES = [
    pytest.param(path, line, id=line)
    for path, shown in commands(typer.main.get_command(app))
    for line in re.findall(r": (lookless .+)$", shown.help, flags=re.MULTILINE)
]


def test_every_command_has_one():
    shown = {example.values[0] for example in EXAMPLES}
    assert {path for path, _ in commands(typer.main.get_command(app))} == shown
    assert {("plan", name) for name in METHODS} < shown


@pytest.mark.parametrize(("path", "line"), EXAMPLES)
def test_it_runs(path, line, tmp_path, monkeypatch):
    assert tuple(shlex.split(line)[1 : len(path) + 1]) == path
    monkeypatch.chdir(tmp_path)
    user.folder(monkeypatch)
    if path == ("report",):
        run_folder(Path("my-run"))
    user.without_results([shlex.split(line)])
    done = user.run(shlex.split(line))
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() or path == ("serve",)


@pytest.mark.parametrize(
    "name",
    [
        *("lookless.plan", "lookless.liveness", "lookless.scores", "lookless.flops"),
        *("lookless.methods.v_skip", "lookless.runtime.rows"),
    ],
)
def test_docstrings_run(name):
    """What is easy to get wrong has an example, which gives what it says."""
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert found.attempted >= 3
    assert found.failed == 0
