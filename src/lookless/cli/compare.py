"""The command that compares two results: compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LooklessError
from .common import Json, app, one_sentence, out, print_json, print_whole

if TYPE_CHECKING:
    from ..evaluation import Evaluation


@app.command()
@one_sentence
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="What `eval --json` printed, or a folder of such files.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same of another plan, on the same questions.")],
    alpha: Annotated[float, typer.Option(help="Probability that any task is called different by chance.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Do two results differ by more than chance? McNemar's exact test for each task, with Holm's correction.

    Example: lookless compare mild.json bold.json
    """
    from rich.table import Table

    from ..certification import compare as test

    if not 0 < alpha < 1:
        raise LooklessError(f"an alpha of {alpha} is not between 0 and 1.")
    mine, others = _results(first), _results(second)
    if mine.keys() != others.keys():
        raise LooklessError(f"{first} has results of {', '.join(mine)} and {second} of {', '.join(others)}.")
    found = test(list(mine.values()), [others[name] for name in mine])
    if as_json:
        print_json({"alpha": alpha, "tasks": [one.model_dump() for one in found]})
        return
    table = Table("task", "questions", "A right", "B right", "only A", "only B", "p-value", "with Holm", "")
    for one in found:
        numbers = one.n, one.right, one.other_right, one.only, one.only_other
        verdict = (
            "no difference shown" if one.adjusted > alpha else f"{'A' if one.only > one.only_other else 'B'} better"
        )
        table.add_row(one.task, *map(str, numbers), f"{one.p_value:.2g}", f"{one.adjusted:.2g}", verdict)
    print_whole(table)
    out.print(f"A: {first}, B: {second}", soft_wrap=True, highlight=False)


def _results(path: Path) -> dict[str, Evaluation]:
    """By name: the one in a file, or those in a folder."""
    from .. import files
    from ..evaluation import Evaluation

    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise LooklessError(f"{path} has no JSON file: give what `lookless eval --json` printed.")
    found = [files.load(one, Evaluation, LooklessError, 1) for one in paths]
    return {one.stem if path.is_dir() else "": result for one, result in zip(paths, found, strict=True)}
