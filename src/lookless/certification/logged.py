"""Answers that lmms-eval has scored: the files that its ``--log_samples`` writes, one for each task.

``DATE_samples_TASK.jsonl`` holds an object for each question: ``doc_id`` (its number in the data set), ``target``,
``input`` (the prompt), ``filtered_resps``, ``doc_hash``, sometimes ``input_media`` (its image files), and what the task
makes of the answer, under names of its own: a number (``exact_match``, ``relaxed_overall``, ``anls``), or an object
that has one as its ``score`` (``mme_perception_score``, ``pope_accuracy``). In lmms-eval 0.7 ``doc_hash`` is the same
for all questions of all tasks, as the question is no longer at hand where it is made; so the target is compared too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..errors import DataError
from .sides import Scored, Side

#: Fields of a line that are no score.
PLAIN = {"doc_id", "doc", "target", "arguments", "input", "resps", "filtered_resps", "token_counts", "doc_hash"}
_NAME = re.compile(r"^(?:(?P<date>.+?)_)?samples_(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT[\d.-]+)?\.jsonl$")
Line = dict[str, Any]


@dataclass(frozen=True)
class _Log:
    """One file: its task, and its lines in the order of ``doc_id``."""

    path: Path
    task: str
    lines: tuple[Line, ...]


def is_logged(path: Path) -> bool:
    """Whether ``path`` is such a file, or a folder that has one in it or below it."""
    return path.suffix == ".jsonl" or (path.is_dir() and bool(_paths(path)))


def read_logged(path: Path, fields: Sequence[str] = (), image: str | None = None) -> dict[str, Scored]:
    """Scores by task.

    Args:
        path: a file, or a folder that has them in it or below it, of one run of each task.
        fields: the scores to take, of each task the first that its lines have; lines without it are left out. By
            default the only one that every line has.
        image: the field that names a question's image, with dots into objects, such as
            ``mme_perception_score.question_id``. By default ``input_media``, where every line has it.

    Raises:
        DataError: there is no such file, a line cannot be read, a question comes twice, a task was run twice, or no
            score can be chosen.
    """
    logs: dict[str, _Log] = {}
    for one in _paths(path) if path.is_dir() else [path]:
        log = _read(one)
        if log.task in logs:
            raise DataError(
                f"{path} holds two runs of {log.task}, {logs[log.task].path.name} and {one.name}: name one file, or "
                f"move the other away."
            )
        logs[log.task] = log
    _check_fields(fields, logs.values())
    return {task: _scored(log, fields, image) for task, log in logs.items()}


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.jsonl") if _NAME.match(path.name))


def _read(path: Path) -> _Log:
    named = _NAME.match(path.name)
    lines: dict[Any, Line] = {}
    try:
        content = files.read_bytes(path)
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror}).") from problem
    for number, text in enumerate(content.split(b"\n"), start=1):
        if not text.strip():
            continue
        line = _line(path, number, text)
        if line["doc_id"] in lines:
            raise DataError(
                f"{path}, line {number} has doc_id {line['doc_id']} again: a file of several filters or runs cannot be "
                f"compared."
            )
        lines[line["doc_id"]] = line
    if not lines:
        raise DataError(f"{path} holds no line, so there is nothing to compare.")
    ordered = tuple(lines[key] for key in sorted(lines, key=lambda key: (str(type(key)), key)))
    return _Log(path, named["task"] if named else path.stem, ordered)


def _line(path: Path, number: int, text: bytes) -> Line:
    try:
        line = files.parse(text)
    except ValueError as problem:
        raise DataError(f"{path}, line {number} cannot be read: {problem}.") from problem
    if not isinstance(line, dict) or type(line.get("doc_id")) not in (int, str) or "target" not in line:
        raise DataError(
            f"{path}, line {number} is no sample of lmms-eval: it needs doc_id and target, as --log_samples writes "
            f"them."
        )
    return line


def _scored(log: _Log, fields: Sequence[str], image: str | None) -> Scored:
    field = next((one for one in fields if any(_score(line, one) is not None for line in log.lines)), None)
    field = _only_field(log) if field is None else field
    about = _about(log.path)
    if about.get("higher_is_better", {}).get(log.task, {}).get(field) is False:
        raise DataError(f"{field} of {log.path} is better where it is lower: choose another score (--score).")
    lines = [line for line in log.lines if _score(line, field) is not None]
    version = about.get("lmms_eval_version")
    return Scored(
        task=log.task,
        measure=field,
        side=Side(
            name=str(log.path),
            model=about.get("model_name") or None,
            versions={"lmms-eval": str(version)} if version else {},
        ),
        questions=tuple((line["doc_id"], _text(line["target"]), line.get("doc_hash")) for line in lines),
        scores=np.array([_score(line, field) for line in lines], float),
        images=_images(log.path, lines, image),
        prompts=tuple(_text(line.get("input")) for line in lines),
    )


def _score(line: Line, field: str) -> float | None:
    value = line.get(field)
    value = value.get("score") if isinstance(value, dict) else value
    return float(value) if isinstance(value, (bool, int, float)) and math.isfinite(value) else None


def _scores_of(line: Line) -> set[str]:
    return {field for field in line if field not in PLAIN and _score(line, field) is not None}


def _only_field(log: _Log) -> str:
    """The score that every line has; the first of several that are the same everywhere."""
    shared = set.intersection(*map(_scores_of, log.lines))
    common = [field for field in log.lines[0] if field in shared]
    values = {tuple(_score(line, field) for line in log.lines) for field in common}
    if len(values) == 1:
        return common[0]
    known = sorted(set.union(*map(_scores_of, log.lines)))
    what = f"one of {', '.join(known)}" if known else "a task that logs a number for each question"
    found = f"{len(common)} scores that differ" if common else "no score on every line"
    raise DataError(f"{log.path} has {found}: choose {what} (--score).")


def _check_fields(fields: Sequence[str], logs: Iterable[_Log]) -> None:
    """Raises: DataError: one is no score of any task."""
    known = {field for log in logs for line in log.lines for field in _scores_of(line)}
    for field in fields:
        if field not in known:
            raise DataError(f"no line has a score {field!r}; scores are {', '.join(sorted(known)) or 'none'}.")


def _images(path: Path, lines: Sequence[Line], image: str | None) -> tuple[frozenset[str], ...] | None:
    if image is None:
        known = [line.get("input_media") for line in lines]
        return tuple(frozenset(map(_text, one)) for one in known if one) if all(known) else None
    found = []
    for line in lines:
        value: Any = line
        for part in image.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            raise DataError(f"{path} has no {image} for doc_id {line['doc_id']}: name a field that every line has.")
        found.append(frozenset(map(_text, value if isinstance(value, list) else [value])))
    return tuple(found)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _about(path: Path) -> dict[str, Any]:
    """What ``DATE_results.json`` beside the file says; nothing where there is none.

    Raises:
        DataError: it cannot be read.
    """
    named = _NAME.match(path.name)
    beside = path.with_name(f"{named['date']}_results.json") if named and named["date"] else None
    if beside is None or not beside.is_file():
        return {}
    try:
        found = json.loads(files.read_bytes(beside))  # with NaN, as lmms-eval writes it
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"{beside} cannot be read ({problem}): move it away to compare without it.") from problem
    return found if isinstance(found, dict) else {}
