"""The commands of the command line, from what their ``--help`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from lookless.cli.main import app
from lookless.methods import METHODS

#: A line of a help text that ends with a command.
_EXAMPLE = re.compile(r"^(.+): (lookless .+)$", re.MULTILINE)

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
    """What its help says, with the examples in it as code."""
    words = f"lookless {' '.join(path)}"
    return "\n".join([f"## {words}", "", _EXAMPLE.sub(_shown, command.help), "", *options(command, words), ""])


def _shown(example: re.Match[str]) -> str:
    lead = "" if example[1].startswith("Example") else f"{example[1]}:\n\n"
    return f"{lead}    {example[2]}"


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
    return " ".join(text.split()).replace("|", "\\|")
