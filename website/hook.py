"""What MkDocs calls while it builds: pages from the root and from the code join those of docs/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[1]))

from lookless.methods import METHODS
from website import api, commands, methods, notebook
from website.foreign import foreign
from website.sources import BESIDE, NOTEBOOK, ROOT, as_page

#: Pages of wide tables, which take the room of what else would be beside them.
WIDE = ("results.md",)


def on_config(config: Any) -> None:
    """The pages of methods go below that of all methods, those of public names below that of all names."""
    [group] = [entry["Methods"] for entry in config.nav if "Methods" in entry]
    group += [{name: f"methods/{name}.md"} for name in sorted(METHODS)]
    [group] = [entry["Python"] for entries in config.nav for entry in entries.get("Reference", []) if "Python" in entry]
    group += [{name: f"api/{name}.md"} for name in api.pages((ROOT / "docs/api.md").read_text())]


def on_files(files: Files, config: Any) -> None:
    table = (ROOT / "docs/methods.md").read_text()
    pages = {page: (ROOT / path).read_text() for page, path in BESIDE.items()}
    pages["commands.md"] = commands.page()
    pages["notebook.md"] = notebook.page((ROOT / NOTEBOOK).read_text())
    for name, method in METHODS.items():
        pages[f"methods/{name}.md"] = methods.page(method, table)
    for name, text in api.pages((ROOT / "docs/api.md").read_text()).items():
        pages[f"api/{name}.md"] = text
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    where = page.file.src_uri
    if where in WIDE:
        page.meta["hide"] = ["navigation", "toc"]
    if where == "methods.md":
        text = methods.linked(text)
    if where == "api.md":
        text = api.linked(text)
    return as_page(text, where)


def on_post_page(html: str, page: Any, **_: Any) -> None:
    """Raises: PluginError: the page would load something from another machine."""
    if tags := foreign(html):
        raise PluginError(f"{page.file.src_uri} loads from another machine: {tags[0]}")
