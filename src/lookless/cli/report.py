"""`lookless report`: one HTML page on a run, or on single files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LooklessError
from .common import DataOptions, Device, Dtype, app, err, one_sentence, out, spread
from .outputs import Overwrite, edited_file, new_file, run_folder

if TYPE_CHECKING:
    from ..pages.material import Material

What = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN_DIR | FILE...",
        help="The folder of `lookless optimize`, and other evaluations of its questions to be shown beside; or single "
        "files: scores, evaluations (`eval --json`), a plan's folder, a front, a certificate.",
    ),
]
Page = Annotated[
    Path | None, typer.Option("--out", help="The HTML file (default: RUN_DIR/report.html, or lookless-report.html).")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="[TASK=]DATA",
        help="Where the images are, if not where the files say; repeatable. Without TASK: of the only task, or of that "
        "with the file's name.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        help="First run the model on so many samples of each task: where it attends, how far layers move visual "
        "tokens, and which tokens the plan keeps; of a run also what other methods answer at its price.",
        min=1,
    ),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="With --samples: the model, if not where the files say.")
]


@app.command()
@one_sentence
@spread
def report(
    what: What,
    options: DataOptions,
    page: Page = None,
    data: Where = None,
    samples: Samples = None,
    model: ModelName = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Write one HTML page on a run: plans and what they save and cost, the certificate, answers, scores, and the visual
    tokens that are kept. It is complete in itself and works offline.

    A run is a folder of `lookless optimize`; files of scores and answers, and plans, are read by themselves too.

    Example: lookless report my-run --out page.html

    Of single files: lookless report scores.json answers.json my-plan --data mine.jsonl --samples 4
    """
    from ..pages.page import write_page
    from ..pages.reading import read

    reading = options.reading
    material = read(what, data or (), reading if str(reading) else None)
    path = new_file(page, overwrite) if page is not None else edited_file(_default(what))
    if samples is not None:
        if _is_run(what[0]):
            run_folder(what[0])
        material = _measured(material, what[0], samples, model, device, dtype)
    write_page(material, path)
    out.print(f"written: {path}", soft_wrap=True)


def _default(what: list[Path]) -> Path:
    """Beside the run; loose files belong to no folder."""
    return what[0] / "report.html" if _is_run(what[0]) else Path("lookless-report.html")


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def _measured(material: Material, first: Path, samples: int, model: str | None, device: str, dtype: str) -> Material:
    """``material`` with what its model tells; a run keeps it in its folder.

    Raises:
        LooklessError: no file names the model.
    """
    from ..loading import load_model
    from ..pages.measuring import measured

    name = model or material.model
    if name is None:
        raise LooklessError("--samples runs the model, and none of these files names one: give --model.")
    revision = material.run.revision if material.run and model is None else None
    loaded = load_model(name, revision=revision, device=device, dtype=dtype)
    root = first if _is_run(first) else None
    return measured(material, loaded, samples, root=root, log=lambda what: err.print(what, highlight=False))
