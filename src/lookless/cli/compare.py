"""The command that compares two results: compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LooklessError
from .common import Json, app, err, one_sentence, out, print_json, print_whole

if TYPE_CHECKING:
    from rich.table import Table

    from ..certification import Paired, Scored

#: Why a test was taken.
REASONS = {
    "McNemar": "McNemar's exact test, as every answer is right or wrong and no two questions share an image",
    "permutation by question": "a permutation test, as scores are graded",
    "permutation by image": "a permutation test of whole images, as questions share images, and the answers about one "
    "are not independent",
}
#: Where fewer answers differ, the bootstrap has too little to draw from.
FEW = 10
UNKNOWN = (
    "The files do not say which questions share an image, so all were taken to be independent. If some do share one, "
    "p-values are too small."
)


@app.command()
@one_sentence
def compare(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="A",
            help="What `eval --json` printed, or a folder of such files; or what lmms-eval's --log_samples wrote.",
        ),
    ],
    second: Annotated[
        Path | None,
        typer.Argument(
            metavar="B", help="The same of another plan, on the same questions. Without it: A's stock model and plan."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Test whether B loses less than this, in score: 0.01 is one point of accuracy. Choose it before you "
            "look."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Probability that any task is called different by chance.")] = 0.05,
    score: Annotated[
        list[str] | None,
        typer.Option(help="With lmms-eval: the field that is the score; repeatable, for tasks that differ in it."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="With lmms-eval: the field that names a question's image, such as mme_perception_score.question_id."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Do two results differ by more than chance, and does B lose less than a margin? Task by task.

    McNemar's exact test, or a permutation test where questions share images; Holm's correction over tasks.

    Example: lookless compare mild.json bold.json --margin 0.01

    Of lmms-eval, with --log_samples: lookless compare logs/stock logs/plan --margin 0.01
    """
    from ..certification import compare as test

    mine = _results(first, score or (), image, dense=second is None)
    others = _results(second or first, score or (), image)
    if mine.keys() != others.keys():
        raise LooklessError(
            f"{first} has results of {', '.join(mine)} and {second} of {', '.join(others)}: give both the same tasks."
        )
    with err.status("testing"):
        found = test(list(mine.values()), [others[name] for name in mine], margin=margin, alpha=alpha)
    if as_json:
        print_json({"alpha": alpha, "margin": margin, "tasks": [one.model_dump() for one in found]})
        return
    print_whole(_differences(found, alpha))
    if margin is not None:
        print_whole(_margins(found, alpha, margin))
    a, b = (first, second) if second else (f"the stock model of {first}", "its plan")
    out.print("\n".join([f"A: {a}, B: {b}.", *_notes(found, alpha, margin)]), soft_wrap=True, highlight=False)


def _differences(found: Sequence[Paired], alpha: float) -> Table:
    from rich.table import Table

    from ..metrics import Unit

    heads = ("task", "score", "questions", "images", "A, B", "better A, B", "B - A, points", "retained", "p-value")
    table = Table(*heads, "with Holm", "")
    for one in found:
        unit = Unit(one.measure, one.is_share)
        points = (unit.points(value) for value in (one.difference.value, one.difference.low, one.difference.high))
        table.add_row(
            one.task,
            one.measure,
            str(one.n),
            "?" if one.images is None else str(one.images),
            f"{unit.said(one.score_a)} {unit.said(one.score_b)}",
            f"{one.better_a} {one.better_b}",
            "{} [{}, {}]".format(*points),
            "-" if one.retention is None else str(one.retention),
            f"{one.p_value:.2g}",
            f"{one.adjusted:.2g}",
            _verdict(one, alpha),
        )
    return table


def _verdict(one: Paired, alpha: float) -> str:
    if one.adjusted > alpha:
        return "no difference shown"
    return "B better" if one.difference.value > 0 else "A better"


def _margins(found: Sequence[Paired], alpha: float, margin: float) -> Table:
    from rich.table import Table

    table = Table("task", "B loses at most", "test", "p-value", "with Holm", f"less than {margin:.3g}?")
    for one in found:
        tested = one.non_inferiority
        assert tested is not None
        verdict = "yes"
        if tested.adjusted > alpha:
            why = f"about {tested.needed} questions would do" if tested.needed else "the loss seen is not smaller"
            verdict = f"not shown: {why}"
        numbers = f"{100 * tested.upper:.2f} points", tested.test, f"{tested.p_value:.2g}", f"{tested.adjusted:.2g}"
        table.add_row(one.task, *numbers, verdict)
    return table


def _notes(found: Sequence[Paired], alpha: float, margin: float | None) -> list[str]:
    """What was tested how, and why."""
    by_test: dict[str, list[str]] = {}
    for one in found:
        by_test.setdefault(one.test, []).append(one.task)
    notes = [f"{', '.join(tasks)}: {REASONS[test]}." for test, tasks in by_test.items()]
    if any(one.images is None for one in found):
        notes.append(UNKNOWN)
    notes.append("In brackets: 95 % bootstrap intervals, in which whole images are drawn.")
    few = [one.task for one in found if one.better_a + one.better_b < FEW]
    if few:
        notes.append(f"{', '.join(few)}: under {FEW} answers differ, so intervals are rough: go by the p-value.")
    if margin is not None:
        largest = max(one.non_inferiority.p_value for one in found if one.non_inferiority)
        shown = "is shown" if largest <= alpha else "is not shown"
        notes.append(f"That B loses less than {100 * margin:.3g} points on every task {shown} (p = {largest:.2g}).")
    return notes


def _results(path: Path, score: Sequence[str], image: str | None, dense: bool = False) -> dict[str, Scored]:
    """By name: the one in a file, or those in a folder.

    Raises:
        LooklessError: there is none, or an option is for other files than these.
    """
    from .. import files
    from ..certification import scored
    from ..certification.logged import is_logged, read_logged
    from ..evaluation import Evaluation

    if is_logged(path):
        if dense:
            raise LooklessError(f"{path} holds one run of lmms-eval: name the other, too.")
        return read_logged(path, score, image)
    if score or image:
        raise LooklessError(f"--score and --image are for samples of lmms-eval, and {path} holds none.")
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise LooklessError(f"{path} has no JSON file: give what `lookless eval --json` printed.")
    found = [files.load(one, Evaluation, LooklessError, 1) for one in paths]
    if dense and any(answer.plan is None for one in found for answer in one.answers):
        raise LooklessError(f"{path} holds answers of one model alone: name another result to compare it with.")
    return {one.stem if path.is_dir() else "": scored(r, dense=dense) for one, r in zip(paths, found, strict=True)}
