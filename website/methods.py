"""A page for each method, from its docstrings, its row in docs/methods.md and what is said of it there."""

from __future__ import annotations

import re
import sys

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
    """The head and the row of ``name``."""
    lines = table.splitlines()
    [head] = [i for i, line in enumerate(lines) if line.startswith("| method |")]
    return "\n".join([*lines[head : head + 2], next(line for line in lines if line.startswith(f"| `{name}` |"))])


def said(table: str, name: str) -> list[str]:
    """The paragraphs that begin with it or name it in bold."""
    return [part for part in table.split("\n\n") if f"**`{name}`**" in part]


def plan(method: Method) -> list[str]:
    """What it makes of a model where it needs nothing but the model's shape."""
    if method.needs:
        return []
    shape = Geometry.preset(SHOWN)
    shown = re.sub(r"^", "    ", str(method.build(shape)), flags=re.MULTILINE)
    return [f"## Its plan for {SHOWN}", method.setting(shape), shown]


def linked(table: str) -> str:
    """docs/methods.md, with each row leading to its page."""
    return re.sub(r"^\| `([\w-]+)` \| \[", r"| [`\1`](methods/\1.md) | [", table, flags=re.MULTILINE)
