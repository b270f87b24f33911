"""What documents show: blocks of code, each with its language, and the commands in them."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Those that have code to run: a user's, and at the end those of somebody who changes lookless.
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))
PAGES += ("CONTRIBUTING.md", "SECURITY.md", "training/README.md")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


@dataclass(frozen=True)
class Block:
    """``language`` is empty for a block that does not say it."""

    line: int
    language: str
    code: str

    @property
    def commands(self) -> list[list[str]]:
        """Of a block of the shell: words by line, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def text(path: str) -> str:
    """Of a document of the repository."""
    return (ROOT / path).read_text()


def blocks(page: str) -> list[Block]:
    """In order. Indented code says no language."""
    document = text(page)
    prose = _FENCED.sub(lambda fenced: "\n" * fenced[0].count("\n"), document)
    found = [(document, *found.span(), found[1], found[2]) for found in _FENCED.finditer(document)]
    found += [(prose, *found.span(), "", found[0]) for found in _INDENTED.finditer(prose)]
    numbered = [Block(of[:begin].count("\n") + 1, language, code) for of, begin, _, language, code in found]
    return sorted(numbered, key=lambda block: block.line)


def cells(notebook: str) -> list[Block]:
    """Those of a notebook that hold code, each with its number in the place of its line."""
    found = enumerate(json.loads(text(notebook))["cells"])
    return [Block(number, "python", "".join(cell["source"])) for number, cell in found if cell["cell_type"] == "code"]
