"""The notebook as a page: its words, and its code as blocks."""

from __future__ import annotations

import json

HEAD = 'This page is a notebook: <a href="notebook.ipynb" download>download it</a>, and run it on your model.'


def page(notebook: str) -> str:
    """Of what the file holds. Outputs are not shown: they would be those of another day."""
    title, *rest = (shown(cell) for cell in json.loads(notebook)["cells"])
    return "\n\n".join([title, HEAD, *rest]) + "\n"


def shown(cell: dict[str, object]) -> str:
    said = "".join(cell["source"])  # type: ignore[arg-type]
    return said if cell["cell_type"] == "markdown" else f"```python\n{said}\n```"
