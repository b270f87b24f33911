"""`lookless report`: one HTML page on a run, or on single files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LooklessError
from .common import Device, Dtype, app, one_sentence, out, writable

if TYPE_CHECKING:
    from ..pages.material import Material

What = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN_DIR | FILE...",
        help="The folder of `lookless optimize`, or single files: scores, evaluations (`eval --json`), a plan's "
        "folder, a front, a certificate.",
    ),
]
Page = Annotated[
    Path | None, typer.Option("--out", help="The HTML file (default: RUN_DIR/report.html, or lookless-report.html).")
]
Where = Annotated[
    list[str] | None,
    typer.Option("--data", help="Where the images are, if not where the run found them: TASK=DATA; repeatable."),
]
Attention = Annotated[
    int | None,
    typer.Option(
        metavar="SAMPLES",
        help="First measure where the model attends, on so many samples of each task of the run; loads the model.",
        min=1,
    ),
]


@app.command()
@one_sentence
def report(
    what: What,
    page: Page = None,
    data: Where = None,
    attention: Attention = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Write one HTML page on a run: plans and what they save and cost, the certificate, answers, scores. It is complete
    in itself and works offline.

    A run is a folder of `lookless optimize`; files of scores and answers, and plans, are read by themselves too.

    Example: lookless report my-plan --out page.html
    """
    from ..pages.material import read
    from ..pages.page import write_page

    material = read(what, _places(data))
    path = writable(page or _default(what), folder=False)
    if attention is not None:
        material = _measured(material, what[0], attention, device, dtype)
    write_page(material, path)
    out.print(f"written: {path}", soft_wrap=True)


def _default(what: list[Path]) -> Path:
    """Beside the run; loose files belong to no folder."""
    return what[0] / "report.html" if (what[0] / "run.json").is_file() else Path("lookless-report.html")


def _places(data: list[str] | None) -> dict[str, str]:
    """TASK=DATA by task. Raises: LooklessError: one has no `=`."""
    for place in data or ():
        if "=" not in place:
            raise LooklessError(f"--data {place!r} is not TASK=DATA, for example chart=reference:chart.")
    return dict(place.split("=", 1) for place in data or ())


def _measured(material: Material, root: Path, samples: int, device: str, dtype: str) -> Material:
    """``material`` with the attention of its model, which is kept in the run's folder.

    Raises:
        LooklessError: it is no run, so it does not say which model and data.
    """
    from dataclasses import replace

    from ..calibration.attention_maps import AttentionProfiles, attention_profile
    from ..data import load_data
    from ..loading import load_model
    from ..pages.material import ATTENTION

    if material.run is None:
        raise LooklessError("--attention needs a run's folder, which names the model and the data.")
    chosen = {task: load_data(data, split="calibration", limit=samples) for task, data in material.data.items()}
    loaded = load_model(material.run.model, revision=material.run.revision, device=device, dtype=dtype)
    profiles = {task: attention_profile(loaded, few) for task, few in chosen.items()}
    measured = AttentionProfiles(model=loaded.name, profiles=profiles)
    measured.save(root / ATTENTION)
    return replace(material, attention=measured)
