"""Samples from the reference tasks, a data file, or a task file that says how to read one."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from .. import files, reference
from ..errors import DataError
from ..metrics import DEFAULT, metric_named
from .harness import is_task
from .rows import KEYS, Row, row_of
from .samples import Sample, Samples
from .sources import GIVE, Source, source_at

SEED = 0  # of the draw from a file, by default


class TaskFile(BaseModel):
    """How to read a data file and to score the answers: a JSON file that stands for it in every command.

    Attributes:
        data: the data file, relative to this one.
        columns: of each of our keys, the data's own name for it.
        prompt_suffix: is added to each question.
        metric: by which answers are scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    columns: dict[str, str] | None = None
    prompt_suffix: str = ""
    metric: str = DEFAULT


def load_data(
    where: str,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int | None = None,
    without: Collection[str] = (),
    columns: Mapping[str, str] | None = None,
    prompt_suffix: str | None = None,
    skip_bad: bool = False,
    metric: str | None = None,
) -> Samples:
    """The samples named by ``where``.

    A file has no splits of its own. Its ``calibration`` split is drawn at random; test on the lines that were not
    drawn::

        calibration = load_data("mine.jsonl", split="calibration", limit=20)
        test = load_data("mine.jsonl", split="test", without=calibration.hashes)

    Args:
        where: ``reference:TASK``, ``reference`` for all its tasks in turn, ``lmms:TASK`` of lmms-eval, or a path: of a
            file of JSON lines, a CSV or TSV file, a parquet file (or a pattern of several), a folder with one of these,
            a data set that ``datasets`` saved, or a task file (``.json``, :class:`TaskFile`). A row has ``question``,
            ``answer`` (a list, if several are right), ``image`` or ``images`` (paths relative to the file), and
            optionally ``id`` and ``task``.
        split: ``test``: the rows of a file in their order; ``calibration``: rows with an image, drawn at random,
            equally many from each ``task``. The two splits of a reference task are disjoint.
        limit: the largest number of samples; by default all of a file, and 100 of the reference tasks.
        seed: of the draw from a file, 0 by default. The reference tasks have a seed of their own.
        without: the :attr:`Sample.hash` of samples to leave out, for example those a plan was calibrated on.
        columns: of each of our keys, the file's own name for it: ``{"image": "img"}``.
        prompt_suffix: is added to each question in the prompt.
        skip_bad: skip rows and images that cannot be read; :attr:`Samples.bad` says which and why.
        metric: by which answers are to be scored, one of :data:`lookless.metrics.METRICS`; by default a task file's, or
            ``exact``.

    Raises:
        DataError: there is no such file or task, a row or an image cannot be read, or no sample is left.
        LooklessError: there is no such metric.
    """
    if metric is not None:
        metric_named(metric)
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no sample: give 1 or more.")
    if where == "reference" or where.startswith("reference:"):
        if seed is not None:
            raise DataError(f"seed {seed} is for the draw from a file: {where} has a seed of its own.")
        if columns:
            raise DataError(f"columns are of a file: {where} has none.")
        return _reference(where, split, limit or 100, prompt_suffix or "", metric or DEFAULT)
    if split not in ("calibration", "test"):
        raise DataError(f"split {split!r} of a file is not one of calibration, test.")
    if split == "test" and seed is not None:
        raise DataError(f"seed {seed} is for the calibration split: test takes the lines of {where} in their order.")
    task = _task_file(where)
    source = source_at(task.data)
    columns = _checked(task.columns if columns is None else columns, source)
    suffix = task.prompt_suffix if prompt_suffix is None else prompt_suffix
    lines = Pass(source, columns, suffix, skip_bad)
    if split == "test":
        samples = lines.loaded(lines.rows(), limit, without)
    else:
        seed = SEED if seed is None else seed
        drawn = _drawn(list(lines.rows()), seed)
        samples = replace(lines.loaded(drawn, limit, without), seed=seed, drawn_from=len(drawn))
    return replace(samples, name=Path(where).name, metric=metric or task.metric)


def _checked(columns: Mapping[str, str] | None, source: Source) -> Mapping[str, str] | None:
    """None where a row may have no other keys than ours. Raises: DataError: a sample has no such key."""
    unknown = [key for key in columns or {} if key not in KEYS]
    if unknown:
        raise DataError(f"a sample has no {unknown[0]!r}: name columns for {', '.join(KEYS)}.")
    return {} if columns is None and source.is_table else columns


def _task_file(where: str) -> TaskFile:
    """What a task file says; of any other path, that it is the data."""
    path = Path(where)
    if path.suffix != ".json":
        return TaskFile(data=where)
    if not path.is_file():
        raise DataError(f"{path} cannot be read as data (No such file or directory): {GIVE}.")
    task = files.load(path, TaskFile, DataError, 1)
    metric_named(task.metric)
    return task if is_task(task.data) else task.model_copy(update={"data": str(path.parent / task.data)})


Placed = tuple[str, Row]


@dataclass(frozen=True)
class Pass:
    """One pass over a source.

    Attributes:
        source: what is read.
        columns: of each of our keys, the source's own name for it; None if it may have no other keys than ours.
        suffix: is added to each question.
        skip_bad: go on behind a row that cannot be read.
        bad: what is wrong with each that was skipped.
    """

    source: Source
    columns: Mapping[str, str] | None
    suffix: str
    skip_bad: bool
    bad: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[Placed]:
        """Every row that can be read, with its place; no image is opened."""
        count = 0
        for where, values in self.source.rows():
            count += 1
            try:
                if isinstance(values, DataError):
                    raise values
                if not isinstance(values, Mapping):
                    raise DataError(f"{where}: a row is an object, and here is a {type(values).__name__}: {GIVE_ROW}.")
                yield where, row_of(values, where, self.columns)
            except DataError as problem:
                self._note(problem)
        if count == 0:
            raise DataError(f"{self.source.path} holds no sample: {GIVE_ROW}.")

    def loaded(self, rows: Iterable[Placed], limit: int | None, without: Collection[str]) -> Samples:
        """``rows`` as samples, as many as are wanted; every image is decoded once, so that a damaged one is found
        before the work starts."""
        items: list[Sample] = []
        left_out = 0
        for where, row in rows:
            sample = row.sample(self.source.folder, where, self.suffix)
            try:
                known = sample.hash in without
            except DataError as problem:
                self._note(problem)
                continue
            left_out += known
            items += [] if known else [sample]
            if len(items) == limit:
                break
        path = self.source.path
        if not items and left_out:
            raise DataError(
                f"all {left_out} prompts of {path} were calibrated on, so none is left to test on: calibrate on fewer, "
                f"or test on another file."
            )
        if not items:
            raise DataError(f"none of the {len(self.bad)} samples of {path} can be read; the first: {self.bad[0]}")
        return Samples(path.name, tuple(items), left_out=left_out, bad=tuple(self.bad))

    def _note(self, problem: DataError) -> None:
        """Remember what was skipped. Raises: DataError: nothing may be skipped."""
        if not self.skip_bad:
            raise problem
        self.bad.append(str(problem))


GIVE_ROW = "it needs an object per row, with image, question and answer"


def _drawn(lines: Sequence[Placed], seed: int) -> list[Placed]:
    """The rows with an image in random order, one of each task in turn; all rows, if none has an image.

    Take the first N as a sample of N rows: a larger sample contains each smaller one.
    """
    by_task: dict[str | None, list[Placed]] = {}
    for placed in [pair for pair in lines if pair[1].is_seen] or lines:
        by_task.setdefault(placed[1].task, []).append(placed)
    generator = random.Random(seed)
    piles = list(by_task.values())
    generator.shuffle(piles)
    for pile in piles:
        generator.shuffle(pile)
    longest = max(map(len, piles), default=0)
    return [pile[i] for i in range(longest) for pile in piles if i < len(pile)]


def _reference(where: str, split: str, count: int, suffix: str, metric: str) -> Samples:
    _, _, task = where.partition(":")
    if task and task not in reference.TASKS:
        raise DataError(f"there is no reference task {task!r}; choose one of {', '.join(reference.TASKS)}.")
    tasks = [task] if task else list(reference.TASKS)
    items = []
    for i in range(count):
        name = tasks[i % len(tasks)]
        image, question, answer = reference.question(name, split, i // len(tasks))
        items.append(Sample((image,), question, answer, task=name, suffix=suffix))
    return Samples(f"{where} ({split})", tuple(items), metric=metric)
