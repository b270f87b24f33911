"""The commands of the command line, from what their ``--help`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from lookless.cli.main import app
from lookless.methods import METHODS

HEAD = """# Commands

What `lookless COMMAND --help` prints, of every command. `lookless plan METHOD` is on the
[page of each method](methods.md).

"""


def page() -> str:
    """All commands but those of methods."""
    program = typer.main.get_command(app)
    sections = [section(command, *path) for path, command in commands(program) if path[-1] not in METHODS]
    return HEAD + "\n".join([*options(program, "lookless"), "", *sections])


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command that does something, by its words."""
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def method_options(name: str) -> str:
    """The table of the options of ``lookless plan NAME``."""
    [command] = [command for path, command in commands(typer.main.get_command(app)) if path == ("plan", name)]
    return "\n".join(options(command, f"lookless plan {name}"))


def section(command: Any, *path: str) -> str:
    words = f"lookless {' '.join(path)}"
    told, *examples = re.split(r"^Examples?: ", command.help, flags=re.MULTILINE)
    shown = [f"    {line.strip()}" for example in examples for line in example.splitlines()]
    return "\n".join([f"## {words}", "", told.strip(), "", *shown, "", *options(command, words), ""])


def options(command: Any, words: str) -> list[str]:
    """A table: what may be given to a command."""
    context = typer.Context(command, info_name=words)
    records = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) and not getattr(parameter, "hidden", False)
    ]
    rows = [f"| `{_cell(name)}` | {_cell(text)} |" for name, text in records]
    return ["| option | |", "|---|---|", *rows]


def _cell(text: str) -> str:
    """Of a table; a word in brackets is no link."""
    return " ".join(text.split()).replace("|", "\\|").replace("[", "\\[")
