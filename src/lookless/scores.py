"""How much each layer matters: one measured number per sample and layer.

Higher means that the layer matters more; methods act on the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from . import files
from .errors import ScoresError
from .geometry import Geometry
from .version import __version__

SCHEMA_VERSION = 3
Score = Annotated[float, Field(allow_inf_nan=False)]


class Scores(BaseModel):
    """Scores of one kind on one set of samples: higher where a layer matters more.

        >>> from lookless import Geometry, Scores
        >>> four = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": 4})
        >>> samples = (0.5, 0.1, 0.3, 0.0), (0.7, 0.1, 0.1, 0.0)
        >>> scores = Scores(name="visual_information_gain", per_sample=samples, geometry=four)
        >>> scores.mean
        (0.6, 0.1, 0.2, 0.0)
        >>> scores.lowest(2)
        (1, 3)

    Attributes:
        name: what was measured, e.g. ``visual_information_gain``.
        used_as: the measure that a method takes them for (:meth:`use_as`); None: their own.
        unit: of each score; divergences are in nats.
        position: where the model's distribution was read: ``last`` prompt token, or mean over ``answer`` tokens.
        per_sample: ``[samples][layers]``.
        geometry: of the measured model.
        model, revision: its name, a hub id or a folder, and its hub commit.
        data, data_hash: name and sha256 of the samples.
        visual, text: mean number of tokens of a prompt; None if unknown.
        sample_hashes: :attr:`lookless.Sample.hash` of each sample; None in files of schema 1.
        seed: of the random draw from a file; None if there was none.
        seconds: duration of the measurement.
        measured: ``[samples][layers]``, whether a score was measured (and not estimated); None if all were.
        screened: of how many lowest layers screening has made sure; None if all scores were measured.
        passes: passes through all layers per sample; a backward pass counts as a forward one. None if not counted.
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
    screened: Annotated[int, Field(ge=1)] | None = None
    passes: float | None = None
    used_as: str | None = None
    lookless_version: str = __version__

    @model_validator(mode="after")
    def _one_score_per_layer(self) -> Scores:
        for i, row in enumerate(self.per_sample):
            if len(row) != self.geometry.layers:
                raise ValueError(f"sample {i} has {len(row)} scores and the model {self.geometry.layers} layers")
        if self.measured is not None and [*map(len, self.measured)] != [*map(len, self.per_sample)]:
            raise ValueError("measured and the scores differ in shape")
        return self

    @property
    def measure(self) -> str:
        """The measure that a method takes these scores for."""
        return self.used_as or self.name

    @property
    def source(self) -> str:
        """For the provenance of a plan: the measure, and the one it is taken for if that is another."""
        return self.name if self.used_as is None else f"{self.name} as {self.used_as}"

    def use_as(self, measure: str) -> Scores:
        """These scores for a method that needs ``measure``: a variant of your own, which its plans record."""
        return self.model_copy(update={"used_as": None if measure == self.name else measure})

    @property
    def samples(self) -> int:
        return len(self.per_sample)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean over samples, ``[layers]``."""
        return tuple(fmean(column) for column in zip(*self.per_sample, strict=True))

    @property
    def spread(self) -> tuple[float, ...]:
        """Standard deviation over samples, ``[layers]``; zero for a single sample."""
        return tuple(stdev(c) if len(c) > 1 else 0.0 for c in zip(*self.per_sample, strict=True))

    @property
    def error(self) -> tuple[float, ...]:
        """Standard error of the mean, ``[layers]``."""
        return tuple(s / math.sqrt(self.samples) for s in self.spread)

    @property
    def measured_share(self) -> tuple[float, ...]:
        """Share of each mean that was measured and not estimated, ``[layers]``; 1 if the mean is zero."""
        if self.measured is None:
            return (1.0,) * self.geometry.layers
        pairs = zip(zip(*self.per_sample, strict=True), zip(*self.measured, strict=True), strict=True)
        parts = [(sum(v for v, m in zip(c, known, strict=True) if m), sum(c)) for c, known in pairs]
        return tuple(known / whole if whole else 1.0 for known, whole in parts)

    def lowest(self, count: int) -> tuple[int, ...]:
        """The ``count`` layers with the lowest mean, in ascending order of layer; ties go to the deeper layer.

        A tie is almost always at zero, and fewer layers use what a deep layer computes.

        Raises:
            ScoresError: ``count`` is negative or larger than the number of layers, or another than was screened for.
        """
        if not 0 <= count <= self.geometry.layers:
            raise ScoresError(f"{count} layers were asked for and the model has {self.geometry.layers}.")
        if self.screened is not None and count not in (0, self.screened, self.geometry.layers):
            raise ScoresError(
                f"these scores of {self.name} were screened for their {self.screened} lowest layers, and {count} were "
                f"asked for: ask for {self.screened}, or calibrate anew, with --screen {count} or without it."
            )
        mean = self.mean
        return tuple(sorted(sorted(range(len(mean)), key=lambda layer: (mean[layer], -layer))[:count]))

    def save(self, path: str | Path) -> Path:
        """Write ``path``, completely or not at all."""
        files.write_text(Path(path), files.dump(self))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """The scores in the JSON file at ``path``.

        Raises:
            ScoresError: no such file, an unknown key, or a newer schema.
        """
        return files.load(Path(path), cls, ScoresError, SCHEMA_VERSION)


def pooled(each: Sequence[Scores]) -> Scores:
    """Scores of one measure on several sets of samples, as those of one set; all else is the first's."""
    hashes = [one.sample_hashes for one in each]
    known = [some for some in hashes if some is not None]
    return each[0].model_copy(
        update={
            "per_sample": tuple(row for one in each for row in one.per_sample),
            "sample_hashes": tuple(chain(*known)) if len(known) == len(hashes) else None,
            "data": " + ".join(str(one.data) for one in each),
        }
    )
