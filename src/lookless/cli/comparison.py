"""`lookless table`: compare methods with each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PlanError
from .common import Device, Dtype, app, one_sentence, out, writable

if TYPE_CHECKING:
    from ..comparison.results import Results
    from ..methods import Method

Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: the shipped models.")]
OutPath = Annotated[
    Path, typer.Option("--out", help="Markdown file to write; text outside the generated block is kept.")
]
Work = Annotated[Path, typer.Option(help="Working folder; an interrupted run resumes from it.")]
Budget = Annotated[
    list[float] | None,
    typer.Option(help="Share of FLOPs at which methods are compared (default 0.6); repeatable.", min=0.01, max=1),
]
Only = Annotated[list[str] | None, typer.Option("--method", help="Only this method; repeatable.")]
Tasks = Annotated[list[str] | None, typer.Option(help="Tasks, as for eval (default: what a shipped model knows).")]


@app.command()
@one_sentence
def table(
    models: Models = None,
    out_path: OutPath = Path("results.md"),
    work: Work = Path("lookless-table"),
    budget: Budget = None,
    only: Only = None,
    data: Tasks = None,
    questions: Annotated[int, typer.Option(help="Questions of each task.", min=2)] = 60,
    samples: Annotated[int, typer.Option(help="Calibration samples of each task.", min=1)] = 20,
    machine: Annotated[str, typer.Option(help="A sentence on the machine, for the document.")] = "",
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Run every method at its paper's setting and at one budget, and write a table of retention and cost.

    Over an hour on two cores for both shipped models. Example: lookless table reference --method v-skip --method fastv
    """
    from .. import reference
    from ..comparison.run import check_budgets, run_table
    from ..loading import load_model

    check_budgets(budget or [])
    figure = writable(out_path.parent / "images" / f"{out_path.stem}.png", folder=False)
    writable(out_path, folder=False)
    names = models or reference.NAMES
    folders = {model: writable(work / model.replace("/", "-"), folder=True) for model in names}
    settings: dict[str, Any] = {
        "budgets": budget or [0.6],
        "questions": questions,
        "samples": samples,
        "machine": machine,
    }
    chosen = _chosen(only)
    results = [
        run_table(
            load_model(model, dtype=dtype, device=device),
            chosen,
            folder,
            tasks=data or [f"reference:{task}" for task in reference.tasks_of(model)],
            **settings,
        )
        for model, folder in folders.items()
    ]
    _write(out_path, figure, results)
    out.print(f"written: {out_path} and {figure}; outcomes, question by question, are in {work}", soft_wrap=True)


def _chosen(only: list[str] | None) -> dict[str, Method]:
    """All methods, or those named. Raises: PlanError: there is none of that name."""
    from ..methods import all_methods

    known = all_methods()
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise PlanError(f"no method is called {unknown[0]!r}; methods are {', '.join(known)}.")
    return {name: method for name, method in known.items() if name in (only or known)}


def _write(path: Path, figure: Path, results: list[Results]) -> None:
    """The document and its figure."""
    from .. import figures, files
    from ..comparison.document import document, results_figure
    from ..methods import all_methods

    figures.save_figure(results_figure(results), figure)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    files.write_text(path, document(before, results, all_methods(), f"images/{figure.name}"))
