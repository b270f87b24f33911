"""A page for each method, from its docstrings, its row in docs/methods.md and what is said of it there."""

from __future__ import annotations

import re
import sys
from itertools import groupby

from lookless import Geometry
from lookless.methods import Method

from .commands import method_options
from .docstrings import markdown

#: The model that plans are shown for.
SHOWN = "LLaVA-1.5-7B"


def page(method: Method, table: str) -> str:
    """Its page; ``table`` is docs/methods.md."""
    told = (sys.modules[method.make.__module__].__doc__ or "").replace(f"arXiv {method.paper}", link(method), 1)
    parts = [
        f"# {method.name}",
        row(table, method.name),
        *said(table, method.name),
        "## What it is, and how it differs from the paper",
        markdown(told),
        *plan(method),
        "## On the command line",
        method_options(method.name),
        "## In Python",
        f"`lookless.methods.{method.make.__name__}`",
        markdown(method.make.__doc__ or ""),
    ]
    return "\n\n".join(parts) + "\n"


def link(method: Method) -> str:
    return f"[arXiv {method.paper}](https://arxiv.org/abs/{method.paper})"


def row(table: str, name: str) -> str:
    """Its row, turned to stand: a line for each column but the first."""
    lines = table.splitlines()
    heads, cells = (
        next(line for line in lines if line.startswith(begin)).strip("| ").split(" | ")[1:]
        for begin in ("| method |", f"| `{name}` |")
    )
    return "\n".join(["| | |", "|---|---|", *(f"| {head} | {cell} |" for head, cell in zip(heads, cells, strict=True))])


def said(table: str, name: str) -> list[str]:
    """The paragraphs that begin with it or name it in bold, their links those of a page one folder below."""
    parts = [part for part in table.split("\n\n") if f"**`{name}`**" in part]
    return [re.sub(r"\]\((?=[\w-]+\.md)", "](../", part) for part in parts]


def plan(method: Method) -> list[str]:
    """What it makes of a model where it needs nothing but the model's shape."""
    if method.needs:
        return []
    shape = Geometry.preset(SHOWN)
    shown = "\n".join(f"    {line}" for line in folded(str(method.build(shape)).splitlines()))
    return [f"## Its plan for {SHOWN}", method.setting(shape), shown]


def folded(lines: list[str]) -> list[str]:
    """A printed plan, with layers that do the same on one line."""
    head, *rows = lines
    place = len("layer")
    shown = [head]
    for does, group in groupby(rows, key=lambda line: line[place:]):
        layers = [line[:place].strip() for line in group]
        shown.append("-".join(dict.fromkeys([layers[0], layers[-1]])).rjust(place) + does)
    return shown


def linked(table: str) -> str:
    """docs/methods.md, with each row leading to its page."""
    return re.sub(r"^\| `([\w-]+)` \| \[", r"| [`\1`](methods/\1.md) | [", table, flags=re.MULTILINE)
