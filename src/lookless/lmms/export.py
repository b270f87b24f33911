"""Our data as tasks of lmms-eval: a YAML file and a JSONL file each, for ``--include_path``."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .. import reference
from ..data import ImageFile, Sample, Samples
from ..errors import DataError
from ..files import write_bytes, write_text
from ..metrics import metric_named
from .names import PREFIX
from .task import answer, images, question, score

TASK = """# Written by `lookless lmms`, for `lmms-eval --include_path FOLDER --tasks {name}`.
task: {name}
{tag}dataset_path: text
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function {images}
doc_to_text: !function {question}
doc_to_target: !function {answer}
process_results: !function {score}
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def write_task(samples: Samples, folder: Path, name: str, *, tag: str | None = None, max_new_tokens: int = 32) -> str:
    """Write ``samples`` as one task into ``folder``, and return its name.

    Lines name image files by absolute paths; images that are no files are written beside them. The YAML file is written
    last, so that no task is there whose data is not.

    Args:
        samples: what is asked.
        folder: where ``--include_path`` will point.
        name: of the data; the task is called ``lookless_NAME``, in letters that a shell does not mind.
        tag: a name by which several tasks can be run together.
        max_new_tokens: length of the longest answer.

    Raises:
        DataError: a question has videos or earlier turns, or the metric is not of single answers.
    """
    _check(samples)
    name = task_name(name)
    lines = [
        {
            "images": _paths(sample, folder.resolve() / "images" / name, number),
            "question": sample.question + sample.suffix,
            "answers": sample.right,
            "metric": samples.metric,
        }
        for number, sample in enumerate(samples)
    ]
    file = folder.resolve() / f"{name}.jsonl"
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
    functions = {f.__name__: f"{f.__module__}.{f.__name__}" for f in (images, question, answer, score)}
    write_text(
        folder / f"{name}.yaml",
        TASK.format(
            name=name,
            tag=f"tag: {tag}\n" if tag else "",
            file=json.dumps(file.name),
            max_new_tokens=max_new_tokens,
            **functions,
        ),
    )
    return name


def task_name(name: str) -> str:
    """``reference:chart`` to ``lookless_reference_chart``."""
    return PREFIX + re.sub(r"\W+", "_", name.strip(), flags=re.ASCII).strip("_").lower()


def parts(data: str) -> Sequence[tuple[str, str]]:
    """``data`` as pairs of what :func:`lookless.load_data` loads and the name of its task: the reference suite is one
    task for each of its own."""
    if data == "reference":
        return [(f"reference:{task}", f"reference:{task}") for task in reference.TASKS]
    return [(data, data if data.startswith("reference:") else Path(data).stem)]


def _check(samples: Samples) -> None:
    """Raises: DataError: a task of lmms-eval cannot say this here."""
    total = metric_named(samples.metric).total
    if total != "mean":
        raise DataError(f"the metric {samples.metric} is of all answers together: score {samples.name} with `eval`.")
    for number, sample in enumerate(samples):
        if sample.videos or sample.turns:
            what = "videos" if sample.videos else "earlier turns"
            raise DataError(
                f"{sample.where or f'question {number} of {samples.name}'} has {what}, and a task has images and a "
                f"question: leave it out, or run `lookless eval`."
            )


def _paths(sample: Sample, folder: Path, number: int) -> list[str]:
    """Raises: DataError: an image cannot be written."""
    found = []
    for which, image in enumerate(sample.images):
        if isinstance(image, ImageFile):
            found.append(str(image.path.resolve()))
            continue
        path = folder / f"{number}-{which}.png"
        drawn = io.BytesIO()
        (image if isinstance(image, Image.Image) else image.open()).save(drawn, "PNG")
        try:
            write_bytes(path, drawn.getvalue())
        except OSError as problem:
            raise DataError(f"{path} cannot be written ({problem.strerror}).") from problem
        found.append(str(path))
    return found
