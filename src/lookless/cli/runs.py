"""What `lookless optimize` and `lookless search` have in common: the options of a run, and how one begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LooklessError
from .common import Device, Dtype, Model, Revision, err
from .outputs import run_folder

if TYPE_CHECKING:
    from ..data import Reading
    from ..optimize.folder import Target
    from ..optimize.run import Optimization
    from ..optimize.split import Sizes

#: Panels of the help: what few users need stands apart.
SIZES, MACHINE = "How much", "Machine"

Data = Annotated[
    list[str],
    typer.Option(help="`reference:TASK`, `reference` for all tasks, or a file as for eval; repeatable."),
]
OutDir = Annotated[Path, typer.Option("--out", metavar="RUN_DIR", help="Folder of the run; one that is there goes on.")]
Flops = Annotated[
    float | None,
    typer.Option(help="The least loss at this share of the stock prefill's FLOPs, such as 0.66.", min=0.01, max=0.99),
]
Latency = Annotated[
    float | None,
    typer.Option(help="The least loss at this share of its time on this machine, such as 0.7.", min=0.01, max=0.99),
]
Engine = Annotated[str, typer.Option(help="transformers, or vllm: only plans that vLLM can serve.")]
Fitted = Annotated[
    bool,
    typer.Option(
        "--fitted/--no-fitted",
        help="Maps of low rank in place of what is skipped, too; fitting takes the memory of a backward pass.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the draw from a file, and of the search.")]
Samples = Annotated[
    int | None,
    typer.Option(
        help="Calibration samples of each task (default 16, shared by the tasks).", min=1, rich_help_panel=SIZES
    ),
]
Tuning = Annotated[
    int | None,
    typer.Option(
        help="Samples of each task to search plans on (default 32, shared by the tasks).", min=1, rich_help_panel=SIZES
    ),
]
Selection = Annotated[
    int | None,
    typer.Option(
        help="Samples of each task to compare the best on (default 128, shared).", min=1, rich_help_panel=SIZES
    ),
]
Certification = Annotated[
    int | None,
    typer.Option(
        help="Questions of each task to certify on (default: by the target; 300 for 0.99 at least).",
        min=2,
        rich_help_panel=SIZES,
    ),
]
Proposals = Annotated[
    int | None,
    typer.Option(
        help="Plans tried at each budget by the joint search (default: by the target).", min=0, rich_help_panel=SIZES
    ),
]
Timed = Annotated[
    int | None, typer.Option(help="Prompts in each call that is timed (default 1).", min=1, rich_help_panel=MACHINE)
]


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, whatever it is for.

    `search` takes the sizes of all four parts, so that `optimize` can go on from what it has measured.
    """

    model: Model
    data: Data
    out_dir: OutDir
    flops: Flops = None
    latency: Latency = None
    engine: Engine = "transformers"
    fitted: Fitted = True
    seed: Seed = 0
    samples: Samples = None
    tuning: Tuning = None
    selection: Selection = None
    certification: Certification = None
    proposals: Proposals = None
    timed: Timed = None
    device: Device = "cpu"
    dtype: Dtype = "auto"
    revision: Revision = None

    def begin(
        self,
        start: Callable[..., Optimization],
        target: Target,
        *,
        reading: Reading,
        confidence: float = 0.95,
        **settings: Any,
    ) -> Optimization:
        """Read the data and the model, and begin the run, or go on with it.

        Args:
            start: of :mod:`lookless.optimize.begin`.
            target, reading, confidence, settings: what ``start`` takes.
        """
        from .. import reference
        from ..data import warn_of_skipped
        from ..loading import load_model
        from ..optimize.split import split

        if self.engine not in ("transformers", "vllm"):
            raise LooklessError(f"engine {self.engine!r} is not one of transformers, vllm.")
        run_folder(self.out_dir)
        tasks = sum(len(reference.tasks_of(self.model)) if one == "reference" else 1 for one in self.data)
        parts = split(self.model, self.data, self._sizes(tasks, target, confidence), seed=self.seed, reading=reading)
        loaded = load_model(self.model, dtype=self.dtype, device=self.device, revision=self.revision)
        if reading.skip_bad:
            parts = [part.fitting(loaded) for part in parts]
        for part in parts:
            warn_of_skipped(part.bad)
        fitted = self.fitted and all(len(part.calibration) > 1 for part in parts)
        settings |= {"timed": self.timed or 1, "proposals": self.proposals, "engine": self.engine, "seed": self.seed}
        settings |= {"fitted": fitted}
        return start(
            loaded,
            parts,
            self.out_dir,
            target,
            reading=reading,
            confidence=confidence,
            log=lambda what: err.print(what, highlight=False),
            **settings,
        )

    def _sizes(self, tasks: int, target: Target, confidence: float) -> Sizes:
        """Those given, and for the others enough: of a retention, what certifies it if one answer in a while is lost.

        Args:
            tasks: how many there are.
        """
        from ..certification.bounds import exact_least
        from ..optimize.split import Sizes

        wanted = 200
        if target.kind == "retention":
            wanted = math.ceil(1.6 * (exact_least(1 - target.value, confidence)))
        return Sizes(
            calibration=self.samples or max(4, math.ceil(16 / tasks)),
            tuning=self.tuning or max(6, math.ceil(32 / tasks)),
            selection=self.selection or max(12, math.ceil(128 / tasks)),
            certification=self.certification or wanted,
        )
