"""What is fuzzed: of each reader the name of its file, and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from seeds import plan_set

import lookless.data.sources
import lookless.files
from lookless import Plan, Scores
from lookless.answers import Answer
from lookless.certification.logged import read_logged
from lookless.data import load_data
from lookless.data.images import load_image
from lookless.errors import LooklessError
from lookless.evaluation import Evaluation
from lookless.files import load
from lookless.optimize.folder import Run
from lookless.pages.reading import read
from lookless.routing import PlanSet
from lookless.search.front import Front
from lookless.weights import unpack

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "plan": ("lookless_plan.json", lambda path: str(Plan.from_pretrained(path).live())),
    "scores": ("scores.json", lambda path: Scores.load(path).lowest(1)),
    "jsonl": ("data.jsonl", lambda path: len(load_data(str(path)))),
    "csv": ("data.csv", lambda path: len(load_data(str(path)))),
    "answer": ("answer.json", lambda path: load(path, Answer, LooklessError, 1)),
    "evaluation": ("evaluation.json", lambda path: load(path, Evaluation, LooklessError, 1)),
    "set": ("planset.json", lambda path: PlanSet.from_pretrained(path.parent)),
    "run": ("run.json", lambda path: Run.load(path.parent)),
    "front": ("front.json", lambda path: Front.load(path)),
    "fitted": ("lookless_fitted.safetensors", lambda path: unpack(path.read_bytes(), "it")),
    "log": ("1_samples_vqa.jsonl", read_logged),
    "page": ("any.json", lambda path: read([path])),
    "image": ("image.png", load_image),
}


#: Readers that do not ask :mod:`lookless.files` for a file's bytes. The others are given them from memory.
FROM_DISK = {"image", "fitted"}


@contextmanager
def trial(name: str, folder: Path) -> Iterator[Callable[[bytes], bool]]:
    """Says of any bytes whether the reader ``name`` reads them, as its file in ``folder``, or refuses them.

    It raises whatever is no error of ours, or says nothing.
    """
    file, reader = READERS[name]
    path = folder / file
    given, from_disk = b"", lookless.files.read_bytes
    if name == "set":
        plan_set().save_pretrained(folder)
    path.write_bytes(given)  # it is there for who looks

    def held(asked: Path) -> bytes:
        return given if asked == path else from_disk(asked)

    def is_read(content: bytes) -> bool:
        nonlocal given
        given = content
        if name in FROM_DISK:
            path.write_bytes(content)
        try:
            reader(path)
        except LooklessError as refused:
            if not str(refused).strip():
                raise ValueError("an error without a sentence") from refused
            return False
        return True

    if name in FROM_DISK:
        yield is_read
        return
    with patch.object(lookless.files, "read_bytes", held), patch.object(lookless.data.sources, "read_bytes", held):
        yield is_read
