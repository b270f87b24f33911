"""What the layers of some decoders have that others have not, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class Experts(BaseModel):
    """A mixture of experts in the place of the feed-forward network: each row passes the few that a router picks.

    Attributes:
        count: experts of a layer, E.
        used: how many of them a row passes, k.
        intermediate: inner width of one expert.
        shared: inner width of the gated network beside them that every row passes; 0 without one.
        weighed: a number for each row weighs what the shared network adds.
        dense: layers with a plain feed-forward network instead.
        beside: the gated network beside them is the layer's own, and no number gates it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(gt=0)
    used: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    shared: int = Field(default=0, ge=0)
    weighed: bool = True
    dense: tuple[int, ...] = ()
    beside: bool = False

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is said of few decoders is written for them alone, so that fingerprints stay as they are."""
        rare = {"weighed": True, "beside": False}
        return {name: value for name, value in handler(self).items() if name not in rare or value != rare[name]}

    def read(self, rows: float) -> float:
        """How many experts' weights ``rows`` rows read, if each picks its experts at random."""
        missed: float = (1 - self.used / self.count) ** rows
        return self.count * (1 - missed)


class DeltaNet(BaseModel):
    """A gated delta rule in the place of attention: rows write into a state of each head and read from it.

    Attributes:
        key_heads, value_heads: heads of keys and of values; each of the latter has a state.
        key_dim, value_dim: widths of one key and of one value, and so the sides of a state.
        layers: those that have it; the others have attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_heads: int = Field(gt=0)
    value_heads: int = Field(gt=0)
    key_dim: int = Field(gt=0)
    value_dim: int = Field(gt=0)
    layers: tuple[int, ...]

    @property
    def written_width(self) -> int:
        """Columns that a row writes: query, key and value (which one matrix makes), decay and rate."""
        return 2 * self.key_width + self.read_width + 2 * self.value_heads

    @property
    def key_width(self) -> int:
        """Columns of the queries that a row writes, and of its keys."""
        return self.key_heads * self.key_dim

    @property
    def read_width(self) -> int:
        """Columns that a row reads, and of their gate."""
        return self.value_heads * self.value_dim

    @property
    def state(self) -> int:
        """Numbers of all states of a layer."""
        return self.value_heads * self.key_dim * self.value_dim


class Convolution(BaseModel):
    """A short convolution in the place of attention: each row reads some rows before it, and weighs them by itself.

    Attributes:
        kernel: how many rows one reads, itself among them.
        layers: those that have it; the others have attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel: int = Field(gt=0)
    layers: tuple[int, ...]


class Sliding(BaseModel):
    """Layers in which each row reads only the keys nearest before it.

    Attributes:
        size: how many, itself among them, by their positions.
        layers: those that have it; the others read all keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(gt=0)
    layers: tuple[int, ...]


class OtherHeads(BaseModel):
    """Layers whose heads have another shape than those of the rest.

    Attributes:
        layers: those that have it.
        kv_heads, head_dim: as :class:`Geometry`'s.
        keys_are_values: one projection makes both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...]
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    keys_are_values: bool = False


class SharedKeys(BaseModel):
    """Layers that read keys and values which an earlier layer made, and make none.

    Attributes:
        layers: these layers.
        lenders: for each of them, the layer whose keys it reads.
        intermediate: inner width of their feed-forward network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...]
    lenders: tuple[int, ...]
    intermediate: int = Field(gt=0)


def convolution_of(text: Mapping[str, Any], number: Callable[[str], int]) -> Convolution | None:
    """The short convolutions of a decoder's configuration; None of one without."""
    layers = tuple(i for i, kind in enumerate(text.get("layer_types") or ()) if kind == "conv")
    return Convolution(kernel=number("conv_L_cache"), layers=layers) if layers else None


def intermediate_of(text: Mapping[str, Any], number: Callable[[str], int]) -> int:
    """Inner width of the gated FFN; LFM2 makes two thirds of the number that it says, and rounds them up."""
    said = number("intermediate_size")
    if not text.get("block_auto_adjust_ff_dim"):
        return said
    times = text.get("block_ffn_dim_multiplier")
    wide = int(2 * said / 3)
    return wide if times is None else -(-int(times * wide) // (step := number("block_multiple_of"))) * step
