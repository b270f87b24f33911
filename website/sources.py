"""Documents of the repository as pages of the site.

Documents are written for a reader of the repository, and link to each other by path. On the site they lie elsewhere,
and MkDocs reads another Markdown, so links and lists are rewritten as a page is read.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What is not in docs/, by its place on the site.
BESIDE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "training.md": "training/README.md",
    "models/reference.md": "src/lookless/reference/model/README.md",
    "models/reference-qwen3-vl.md": "src/lookless/reference/qwen3_vl/README.md",
    "models/reference-qwen3-5.md": "src/lookless/reference/qwen3_5/README.md",
}
NOTEBOOK = "docs/notebook.ipynb"
_PLACES = {**{path: page for page, path in BESIDE.items()}, NOTEBOOK: "notebook.md"}
#: Code, which stays as it is: fenced, or indented by four after an empty line.
_CODE = re.compile(r"^```[\s\S]*?^```$|(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")
_NESTED = re.compile(r"^ {2,3}(?=([*-]|\d+\.) )", re.MULTILINE)


def place(path: str) -> str:
    """Of a file of the repository, on the site. What is no page keeps its path, and MkDocs says so."""
    return _PLACES.get(path, path.removeprefix("docs/"))


def as_page(text: str, page: str) -> str:
    """A document as the site's ``page``: links between documents, and lists in lists indented by four."""
    folder = posixpath.dirname(BESIDE.get(page, f"docs/{page}"))

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        return posixpath.relpath(place(target), posixpath.dirname(page) or ".")

    return outside_code(text, lambda prose: _NESTED.sub("    ", _LINK.sub(moved, prose)))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """``text`` with its prose changed and its blocks of code as they were."""
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])
