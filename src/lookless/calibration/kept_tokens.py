"""Which visual tokens a plan leaves alive, layer by layer, in real prompts: what its ``keep`` cells chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .. import files
from ..data import Samples
from ..loading import Loaded
from ..plan import Plan
from ..progress import track
from ..runtime.families import locate
from ..runtime.patching import Applied, apply
from .token_places import Grid, grids_of


class Stage(BaseModel):
    """From a layer on, until the next stage.

    Attributes:
        layer: the first in which no other visual token is alive.
        kept: numbers of those alive, among the prompt's visual tokens, ascending. One that carries merged tokens
            (``Keep(recycle=...)``) counts as alive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=0)
    kept: tuple[int, ...]


class KeptSample(BaseModel):
    """One prompt.

    Attributes:
        sample_hash: :attr:`lookless.Sample.hash`.
        visual: visual tokens that it came with.
        grids: where they lie; empty where that is not known.
        stages: each with fewer tokens than the one before; empty if none was dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_hash: str
    visual: int = Field(gt=0)
    grids: tuple[Grid, ...] = ()
    stages: tuple[Stage, ...] = ()


class KeptTokens(BaseModel):
    """Of one model under one plan, by task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    model: str
    plan_hash: str
    kept: dict[str, tuple[KeptSample, ...]]

    def save(self, path: str | Path) -> Path:
        """Write ``path``, completely or not at all."""
        files.write_text(Path(path), files.dump(self))
        return Path(path)


def drops_tokens(plan: Plan) -> bool:
    """Whether ``plan`` may drop a visual token anywhere."""
    return any(not row.keep.is_full for row in plan.layers)


@torch.no_grad()
def kept_tokens(loaded: Loaded, samples: Samples, plan: Plan, *, progress: bool = True) -> tuple[KeptSample, ...]:
    """Run each sample with an image under ``plan``, one prompt at a time, and note which visual tokens stay alive.

    Raises:
        DataError: the processor refuses a sample.
        ModelError: a plan is applied to the model already.
        PlanMismatchError: the plan is for another architecture.
    """
    located, found = locate(loaded.model), []
    with apply(loaded.model, plan) as applied:
        for sample in track([one for one in samples if one.images], f"tokens kept on {samples.name}", progress):
            inputs = loaded.inputs([sample])
            watch = _Watch(applied)
            hooks = [layer.register_forward_hook(watch.after(i)) for i, layer in enumerate(located.layers)]
            try:
                located.inner(**inputs, use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
            if watch.first is not None:
                found.append(
                    KeptSample(
                        sample_hash=sample.hash,
                        visual=len(watch.first),
                        grids=grids_of(loaded, sample, inputs),
                        stages=tuple(watch.stages),
                    )
                )
    return tuple(found)


class _Watch:
    """Notes which of a prompt's visual rows are alive after each layer; ``first``: those that it came with."""

    def __init__(self, applied: Applied) -> None:
        self.applied, self.stages = applied, list[Stage]()
        self.first: Tensor | None = None

    def after(self, layer: int) -> Callable[..., None]:
        def note(*_: Any) -> None:
            running = self.applied.running.now
            if running is None:
                return
            self.first, alive = running.prompts.first[0], running.prompts.alive[0]
            before = len(self.stages[-1].kept) if self.stages else len(self.first)
            if len(alive) < before:
                kept = torch.searchsorted(self.first, alive).tolist()
                self.stages.append(Stage(layer=layer, kept=tuple(kept)))

        return note
