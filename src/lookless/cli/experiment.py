"""`lookless experiment`: the papers' experiments on a model and data of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import LooklessError
from .common import (
    Device,
    Dtype,
    Json,
    Revision,
    ScoredDataOptions,
    app,
    one_sentence,
    out,
    print_json,
    print_whole,
    spread,
)
from .outputs import Overwrite, run_folder

if TYPE_CHECKING:
    from ..experiments.definition import Experiment
    from ..experiments.lab import Lab
    from ..experiments.report import Report

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of an experiment, or `all`; without: list them.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]", help="`reference`, `reference-qwen3-vl`, `reference-qwen3-5`, a local folder, or a hub id."
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(help="A task, as for eval; repeatable, a file for each (default: what a shipped model knows)."),
]
OutPath = Annotated[
    Path, typer.Option("--out", help="Folder. All that is measured is kept there: an interrupted run resumes.")
]


@app.command()
@one_sentence
@spread
def experiment(
    options: ScoredDataOptions,
    name: Name = None,
    model: Model = "reference",
    data: Tasks = None,
    questions: Annotated[int, typer.Option(help="Questions of each task.", min=2)] = 60,
    samples: Annotated[int, typer.Option(help="Samples of each calibration.", min=1)] = 20,
    seeds: Annotated[int, typer.Option(help="Calibrations on other samples, and random draws.", min=2)] = 3,
    batch: Annotated[int, typer.Option(help="Questions answered at a time.", min=1)] = 25,
    out_dir: OutPath = Path("lookless-experiments"),
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Repeat an experiment of a paper: a table, a figure, and what of its claims holds. Without NAME: list them.

    What several experiments measure alike is measured once. How they came out on the shipped models is in
    docs/reproduction.md.

    Example: lookless experiment v-skip-masks reference --data reference:chart --data reference:counting
    """
    from .. import reference
    from ..errors import DataError
    from ..experiments.lab import Sizes
    from ..experiments.registry import chosen
    from ..experiments.run import check_reports, lab_of, telling
    from ..experiments.store import plain
    from ..loading import load_model

    if name is None:
        _list(as_json)
        return
    wanted = chosen(name)
    run_folder(out_dir / plain(model))
    if not data and model not in reference.SHIPPED:
        raise DataError(f"on what data is {model} to answer? Give --data FILE.jsonl, once for each task.")
    tasks = data or [f"reference:{task}" for task in reference.tasks_of(model)]
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    with telling() as told:
        lab = lab_of(loaded, tasks, out_dir, Sizes(questions, samples, seeds, batch), told, options.reading)
        if not overwrite:
            check_reports(wanted, lab)
        reports = _run(wanted, lab)
    if as_json:
        print_json({report.experiment: report.model_dump(mode="json") for report in reports})
        return
    for report in reports:
        _show(report, lab.folder)


def _run(wanted: Mapping[str, Experiment], lab: Lab) -> list[Report]:
    """The reports; of several experiments, one that this model or data cannot do is told of, and the others are run.

    Raises:
        LooklessError: none can be run.
    """
    from ..experiments.run import run_experiment

    reports: list[Report] = []
    for name, experiment in wanted.items():
        try:
            reports.append(run_experiment(experiment, lab))
        except LooklessError as problem:
            if name == [*wanted][-1] and not reports:
                raise
            typer.echo(f"lookless: {name} was not run: {problem}", err=True)
    return reports


def _list(as_json: bool) -> None:
    from ..experiments.registry import experiments

    known = experiments()
    if as_json:
        print_json({e.name: {"paper": e.paper, "title": e.title, "repeats": e.repeats} for e in known.values()})
        return
    table = Table(title="experiments of the papers")
    for head in ("name", "arXiv", "repeats", "what it shows"):
        table.add_column(head, no_wrap=head in ("name", "arXiv"))
    for e in known.values():
        table.add_row(e.name, e.paper, e.repeats, e.title)
    print_whole(table)


def _show(report: Report, folder: Path) -> None:
    """What was found of each claim, and where the rest is."""
    table = Table(title=f"{report.experiment}: {report.title}")
    for head in ("claim", "in the paper", "here", ""):
        table.add_column(head)
    for finding in report.findings:
        table.add_row(finding.claim, finding.where, finding.measured, finding.verdict)
    print_whole(table)
    where = folder / report.experiment
    out.print(f"written: {where}.md, {where}.json and {where}.png", soft_wrap=True)
