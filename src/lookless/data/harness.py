"""The questions of a task of lmms-eval, as that library asks them.

Needs lmms-eval, which is imported when a task is read. Its data come from the hub, or from where the task says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, caused_by, first_line
from .images import ImageCall

PREFIX = "lmms:"


@dataclass(frozen=True)
class Asked:
    """An image of a question: the ``index``-th that the task shows with a document."""

    task: Any
    document: int
    index: int

    def at(self, context: str) -> ImageCall:
        """The image; ``context`` begins an error message about it."""
        return ImageCall(lambda: self._image(), context)

    def _image(self) -> Image.Image:
        image: Image.Image = self.task.doc_to_visual(self.task.eval_docs[self.document])[self.index]
        return image


def rows(where: str) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    """Each document of ``lmms:TASK``, or of ``lmms:FOLDER/TASK`` for a task that a file in FOLDER defines.

    The question has the task's prompt around it. All of a list of right answers count; ``id`` is the document's
    question_id, and ``task`` its category, where it has them.

    Raises:
        DataError: lmms-eval is missing, it has no such task or cannot load it, or the task asks for no answer in words.
    """
    task = _task(where)
    for number in range(len(task.eval_docs)):
        place = f"{where}, document {number}"
        try:
            yield place, _row(task, number)
        except DataError as problem:
            yield place, caused_by(problem, DataError(f"{place}: {problem}"))
        except Exception as problem:  # any task's own functions
            yield place, caused_by(problem, DataError(f"{place} cannot be read: {first_line(problem)}."))


def _task(where: str) -> Any:
    folder, _, name = where.removeprefix(PREFIX).rpartition("/")
    try:
        from lmms_eval.tasks import TaskManager, get_task_dict
    except ImportError as problem:
        raise DataError(f"{where} needs lmms-eval, which is not installed: pip install lmms-eval.") from problem
    try:
        found = get_task_dict([name], TaskManager(include_path=folder or None))[name]
    except Exception as problem:  # its own errors, and those of datasets and the hub
        reason = first_line(problem.__cause__ or problem)  # what failed again and again is behind a RetryError
        raise DataError(f"{where} cannot be read as a task of lmms-eval: {reason}.") from problem
    kind = getattr(found, "OUTPUT_TYPE", "a group of tasks")
    if kind != "generate_until":
        raise DataError(f"{where} is {kind}, and not questions with an answer in words (generate_until).")
    return found


def _row(task: Any, number: int) -> dict[str, Any]:
    document = task.eval_docs[number]
    seen = task.doc_to_visual(document) or []
    if not all(isinstance(one, Image.Image) for one in seen):
        raise DataError(f"it shows a {type(seen[0]).__name__}, and only images are read from lmms-eval.")
    answers = document.get("answers")
    row = {
        "images": [Asked(task, number, index) for index in range(len(seen))],
        "question": task.doc_to_text(document),
        "answer": answers if isinstance(answers, list) and answers else task.doc_to_target(document),
        "id": document.get("question_id", number),
        "task": document.get("category"),
    }
    return {key: value for key, value in row.items() if value is not None}


def is_task(where: str | Path) -> bool:
    return str(where).startswith(PREFIX)
