"""Markdown: tables, prose wrapped at 100 columns, and generated blocks in files that people write in, too."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

COLUMNS = 100
#: Lines that stay as they are: tables, headings, images, comments, code.
_FIXED = re.compile(r"\||#|!\[|<!--|    |```")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: the first column to the left, numbers to the right."""
    lines = (heads, ["---", *["---:"] * (len(heads) - 1)], *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(text: str) -> str:
    """``text`` with every paragraph and list item, each given on one line, wrapped at :data:`COLUMNS`."""
    return "\n".join(line if _FIXED.match(line) else _filled(line) for line in text.split("\n"))


def _filled(line: str) -> str:
    indent = "  " if line.startswith("* ") else ""
    return textwrap.fill(line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def spliced(before: str, begin: str, end: str, body: str) -> str:
    """``before``, with ``body`` between the marks ``begin`` and ``end``; at its end if they are not there."""
    block = f"{begin}\n\n{body.strip()}\n\n{end}"
    if begin in before and end in before:
        head, rest = before.split(begin, 1)
        return head + block + rest.split(end, 1)[1]
    return (before.rstrip() + "\n\n" if before.strip() else "") + block + "\n"
