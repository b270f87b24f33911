"""What documents show: blocks of code, commands, and the files that these take for granted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from lookless import reference

ROOT = Path(__file__).parents[2]


def text(path: str) -> str:
    """Of a document of the repository."""
    return (ROOT / path).read_text()


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    """Each ``$ lookless`` of its console blocks, in order."""
    lines = "\n".join(blocks(document, "console")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ lookless")]


def user_files(folder: Path) -> None:
    """What commands take for granted: ``my-model``, a model's folder, and ``mine.jsonl`` with its images."""
    shutil.copytree(reference.NAMES["reference"], folder / "my-model")
    (folder / "images").mkdir()
    lines = []
    for i in range(40):
        image, question, answer = reference.question("chart", "test", i)
        image.save(folder / f"images/{i}.png")
        lines.append(json.dumps({"image": f"images/{i}.png", "question": question, "answer": answer}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
