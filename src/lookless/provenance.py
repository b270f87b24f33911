"""Where a plan came from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from .version import __version__


class Provenance(BaseModel):
    """Where a plan came from; every field may be unknown.

    Attributes:
        method: the method's name in ``lookless.methods``.
        knobs: its arguments.
        model: the model calibrated on, a hub id or a folder's name.
        revision: the hub commit of ``model``.
        data: what was calibrated on, for a reader.
        data_hash: sha256 of the calibration samples, 16 hex digits.
        sample_hashes: the prompt of each, :attr:`lookless.Sample.hash`, to know which of other samples were seen.
        seed: by which they were drawn from a file.
        samples: how many there were.
        lookless_version: of the library that made the plan.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str | None = None
    knobs: dict[str, int | float | str] = {}
    model: str | None = None
    revision: str | None = None
    data: str | None = None
    data_hash: str | None = None
    sample_hashes: tuple[str, ...] | None = None
    seed: int | None = None
    samples: int | None = None
    lookless_version: str = __version__
