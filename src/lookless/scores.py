"""How much each layer matters, measured: one number per sample and layer.

Higher = matters more; methods act on the lowest.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from . import files
from .errors import ScoresError
from .geometry import Geometry
from .version import __version__

SCHEMA_VERSION = 2
Score = Annotated[float, Field(allow_inf_nan=False)]


class Scores(BaseModel):
    """Scores of one kind on one set of samples.

    Attributes:
        name: what was measured, e.g. ``visual_information_gain``.
        used_as: the measure that these are to be taken for (:meth:`use_as`); None: what they are.
        unit: of each score; divergences are in nats.
        position: where the model's distribution was read: ``last`` prompt token, or mean over ``answer`` tokens.
        per_sample: ``[samples][layers]``; kept so that a spread can be shown and a subset taken.
        geometry: of the model measured.
        model, revision: which one, a hub id or a folder's name.
        data, data_hash: which samples, for a reader and for a machine.
        visual, text: tokens of a prompt, mean over samples; None where it is not known.
        sample_hashes: the prompt of each, :attr:`lookless.Sample.hash`; None in files of schema 1, which did not say.
        seed: by which they were drawn from a file; None where they were not.
        seconds: what it took.
        measured: ``[samples][layers]``, whether a score was measured and not estimated; None where all were.
        passes: what it took a sample, in passes through all layers; a backward pass counts as a forward one. None where
            it was not counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: str
    unit: str = "nats"
    position: str = "last"
    per_sample: tuple[tuple[Score, ...], ...] = Field(min_length=1)
    geometry: Geometry
    model: str | None = None
    revision: str | None = None
    data: str | None = None
    data_hash: str | None = None
    visual: float | None = Field(default=None, gt=0)
    text: float | None = Field(default=None, ge=0)
    sample_hashes: tuple[str, ...] | None = None
    seed: int | None = None
    seconds: float | None = None
    measured: tuple[tuple[bool, ...], ...] | None = None
    passes: float | None = None
    used_as: str | None = None
    lookless_version: str = __version__

    @model_validator(mode="after")
    def _one_score_per_layer(self) -> Scores:
        for i, row in enumerate(self.per_sample):
            if len(row) != self.geometry.layers:
                raise ValueError(f"sample {i} has {len(row)} scores and the model {self.geometry.layers} layers")
        if self.measured is not None and [*map(len, self.measured)] != [*map(len, self.per_sample)]:
            raise ValueError("measured has another shape than the scores it tells of")
        return self

    @property
    def measure(self) -> str:
        """What a method takes these for."""
        return self.used_as or self.name

    @property
    def source(self) -> str:
        """What a plan says of its scores: what was measured, and what it is taken for if that is another measure."""
        return self.name if self.used_as is None else f"{self.name} as {self.used_as}"

    def use_as(self, measure: str) -> Scores:
        """These, for a method that reads ``measure``: a variant of your own, and its plans say so."""
        return self.model_copy(update={"used_as": None if measure == self.name else measure})

    @property
    def samples(self) -> int:
        return len(self.per_sample)

    @property
    def mean(self) -> tuple[float, ...]:
        """Per layer, over samples."""
        return tuple(fmean(column) for column in zip(*self.per_sample, strict=True))

    @property
    def spread(self) -> tuple[float, ...]:
        """Per layer, the standard deviation over samples; zero for a single sample."""
        return tuple(stdev(c) if len(c) > 1 else 0.0 for c in zip(*self.per_sample, strict=True))

    @property
    def error(self) -> tuple[float, ...]:
        """Per layer, the standard error of the mean."""
        return tuple(s / math.sqrt(self.samples) for s in self.spread)

    @property
    def measured_share(self) -> tuple[float, ...]:
        """Per layer, the share of its mean that was measured and not estimated; 1 of a mean of zero."""
        if self.measured is None:
            return (1.0,) * self.geometry.layers
        pairs = zip(zip(*self.per_sample, strict=True), zip(*self.measured, strict=True), strict=True)
        parts = [(sum(v for v, m in zip(c, known, strict=True) if m), sum(c)) for c, known in pairs]
        return tuple(known / whole if whole else 1.0 for known, whole in parts)

    def lowest(self, count: int) -> tuple[int, ...]:
        """The ``count`` layers with the lowest mean, in ascending order of layer; ties go to the deeper layer.

        Deeper first because a tie is almost always at zero, and what a deep layer changes has fewer readers left.

        Raises:
            ScoresError: ``count`` is negative or larger than the number of layers.
        """
        if not 0 <= count <= self.geometry.layers:
            raise ScoresError(f"{count} layers were asked for and the model has {self.geometry.layers}.")
        mean = self.mean
        return tuple(sorted(sorted(range(len(mean)), key=lambda layer: (mean[layer], -layer))[:count]))

    def save(self, path: str | Path) -> Path:
        """Write ``path`` whole or not at all."""
        files.write_text(Path(path), files.dump(self))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Raises: ScoresError: no such file, an unknown key, or a newer schema."""
        return files.load(Path(path), cls, ScoresError, SCHEMA_VERSION)
