"""Docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap

_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):\n((?:    .*\n?|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^(\*{0,2}\w+): ", re.MULTILINE)


def markdown(docstring: str) -> str:
    """Roles as code, sections as lists; examples are indented, and so code already."""
    text = _ROLE.sub(r"`\1`", inspect.cleandoc(docstring).replace("``", "`"))
    return _SECTION.sub(_listed, text).replace("::\n", ":\n")


def _listed(section: re.Match[str]) -> str:
    entries = _ENTRY.sub(r"* `\1`: ", textwrap.dedent(section[2]).strip())
    behind = "" if section.end() == len(section.string) else "\n"  # else what follows would be part of the list
    return f"**{section[1]}**\n\n{entries}\n{behind}"
