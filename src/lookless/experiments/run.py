"""Run an experiment and write its page: JSON, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from .. import files
from ..data import AS_IS, Reading
from ..errors import LooklessError
from ..figures import save_figure
from ..loading import Loaded
from .definition import Experiment
from .lab import Lab, Sizes
from .report import Report
from .store import plain


def lab_of(
    loaded: Loaded,
    tasks: Sequence[str],
    out: Path,
    sizes: Sizes,
    told: Callable[[str], None] = lambda _: None,
    reading: Reading = AS_IS,
) -> Lab:
    """The lab of a model, whose folder in ``out`` all experiments on it share."""
    return Lab(loaded, tasks, out / plain(loaded.name), sizes, told, reading)


def run_experiment(experiment: Experiment, lab: Lab) -> Report:
    """Run ``experiment`` and write ``NAME.json``, ``NAME.md`` and ``NAME.png`` into the lab's folder, each whole.

    What was measured before is not measured again, so that an interrupted run resumes, and a finished one writes the
    same bytes.
    """
    found = experiment.run(lab)
    report = Report(
        experiment=experiment.name,
        title=experiment.title,
        paper=experiment.paper,
        model=lab.loaded.name,
        settings=_settings(lab),
        tables=found.tables,
        findings=found.findings,
    )
    name = lab.folder / experiment.name
    save_figure(found.figure, name.with_suffix(".png"))
    files.write_text(name.with_suffix(".json"), files.dump(report))
    files.write_text(name.with_suffix(".md"), report.markdown(f"{experiment.name}.png"))
    return report


def check_reports(names: Iterable[str], lab: Lab) -> None:
    """Raises: LooklessError: the folder has a report of one of the experiments with other tasks or sizes, which this
    one's would replace; or one that cannot be read."""
    for name in names:
        path = lab.folder / f"{name}.json"
        if not path.exists():
            continue
        there, now = files.load(path, Report, LooklessError, 1).settings, _settings(lab)
        if there != now:
            key = next(key for key in now if there.get(key) != now[key])
            raise LooklessError(
                f"{path} is a report with {key} {there.get(key)}, and this one is with {now[key]}: give --overwrite to "
                f"replace it, or another folder. What is measured is kept either way."
            )


def _settings(lab: Lab) -> dict[str, str | int]:
    sizes = lab.sizes
    tasks = " ".join(lab.short.values())
    return {"tasks": tasks, "questions": sizes.questions, "samples": sizes.samples, "seeds": sizes.seeds}


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """A line on standard error, on a terminal, that says which cell is being measured, and its number. (No live
    display, as calibration has a bar of its own.)"""
    console, count = Console(stderr=True), 0

    def told(cell: str) -> None:
        nonlocal count
        count += 1
        if console.is_terminal:
            line = f"measuring, cell {count}: {cell.strip()}"
            console.file.write(f"\r\x1b[K{line[: console.width - 1]}")
            console.file.flush()

    try:
        yield told
    finally:
        if console.is_terminal:
            console.file.write("\r\x1b[K")
