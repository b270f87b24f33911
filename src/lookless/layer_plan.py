"""One row of a plan, and the work that it leaves for a decoder layer, as sets of rows.

:class:`LayerPlan` is what a user writes: five cells. :attr:`LayerPlan.work` is what follows from them for the layer:
which rows query over which keys, which keys are made and cached, which rows pass the FFN. The prices, the runtime and
the lower bound read the work and know no cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from .cells import Affine, Cell, Choice, Filter, Full, Keep, Neurons, Part, Sink, Skip, Top, Window
from .fitted import Linear, Mean
from .weights import Weights

#: What each column of a plan takes.
KeepCell = Annotated[Full | Keep | Filter, Field(discriminator="kind")]
AttentionCell = Annotated[Full | Skip | Window | Top | Mean | Linear, Field(discriminator="kind")]
FFNCell = Annotated[Full | Skip | Neurons | Top | Mean | Linear, Field(discriminator="kind")]
VisibleCell = Annotated[Full | Skip | Sink, Field(discriminator="kind")]
DecodeCell = Annotated[Full | Skip | Top, Field(discriminator="kind")]
BeforeCell = Annotated[Full | Skip, Field(discriminator="kind")]


#: Which text tokens: those are ``kept`` whose logits a call returns.
Words = Literal["none", "kept", "all"]


class RowSet(NamedTuple):
    """Some tokens of each prompt, by what they are.

    Attributes:
        text: which text tokens are among them.
        visual: which of the living visual tokens are.
        before: whether text before the prompt's first visual token is, where it would be.
    """

    text: Words
    visual: Part
    before: bool = True

    @property
    def choice(self) -> Choice | None:
        """The cell that chooses its visual tokens; None where it has all or none."""
        return self.visual if isinstance(self.visual, Choice) else None

    def size(self, *, text: float, visual: float, alive: float, kept: float = 0, before: float = 0) -> float:
        """How many rows of a prompt with ``text`` tokens, ``before`` of them before the image, the logits of ``kept``
        behind it of which are returned, and in which ``alive`` of ``visual`` visual tokens are left."""
        chosen = min(alive, self.choice.of(visual)) if self.choice else alive if self.visual == "all" else 0
        return chosen + {"none": 0, "kept": kept, "all": text if self.before else text - before}[self.text]


NONE, KEPT, TEXT = (RowSet(words, "none") for words in ("none", "kept", "all"))
VISUAL, LIVE = RowSet("none", "all"), RowSet("all", "all")


@dataclass(frozen=True)
class AttentionPart:
    """Query rows that attend to the same key rows, each up to itself.

    Attributes:
        query, key: the rows.
        window: through which visual rows attend to visual rows; None without one.
        is_sink: the values of visual key rows are the first one's.
    """

    query: RowSet
    key: RowSet
    window: Window | None = None
    is_sink: bool = False


@dataclass(frozen=True)
class LayerWork:
    """What one layer computes.

    Attributes:
        attention: its attention, in parts with different query rows.
        key: rows whose keys and values are computed.
        cached: rows whose keys and values stay in the cache.
        ffn: rows that pass the whole FFN.
        neurons: the part of the FFN that the other living visual rows pass; None where they pass none.
        attention_affine, ffn_affine: the map that all living visual rows pass in place of the operator; None without.
    """

    attention: tuple[AttentionPart, ...]
    key: RowSet
    cached: RowSet
    ffn: RowSet
    neurons: Neurons | None
    attention_affine: Affine | None = None
    ffn_affine: Affine | None = None

    def rows(self, **tokens: float) -> dict[str, float]:
        """How many ``query``, ``key`` and ``ffn`` rows a prompt of these ``tokens`` has (:meth:`RowSet.size`)."""
        query = sum(part.query.size(**tokens) for part in self.attention)
        return {"query": query, "key": self.key.size(**tokens), "ffn": self.ffn.size(**tokens)}

    @property
    def affine(self) -> tuple[Affine, ...]:
        """The maps that visual rows pass in place of operators."""
        return tuple(cell for cell in (self.attention_affine, self.ffn_affine) if cell is not None)

    @cached_property
    def has_full_attention(self) -> bool:
        """Whether nothing is planned for attention, keys and cache."""
        return self.attention == (AttentionPart(LIVE, LIVE),) and self.cached == LIVE

    @property
    def reads_visual_keys(self) -> bool:
        """Whether some row attends to a visual key."""
        return self.key == LIVE

    @cached_property
    def window(self) -> Window | None:
        """Through which visual rows attend to visual rows; None without one."""
        return next((part.window for part in self.attention if part.window), None)

    @cached_property
    def is_sink(self) -> bool:
        """Whether text reads one visual token's values; they are cached so."""
        return any(part.is_sink for part in self.attention)

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """The cells that choose rows at the layer's input, each once."""
        sets = (*(part.query for part in self.attention), self.ffn, self.cached)
        return tuple(dict.fromkeys(rows.choice for rows in sets if rows.choice is not None))


class LayerPlan(BaseModel):
    """What visual tokens do in one layer; see :mod:`lookless.cells` for what each cell means.

    Attributes:
        keep: which visual tokens are alive from this layer's input on; the others are dead to every later layer.
        attention: which of them query, and over what.
        ffn: which of them pass the FFN, and how much of it.
        visible: whether text attends to their keys and values.
        decode: which of those keys and values stay cached for the answer.
        before: what text before the prompt's first visual token does: it runs both operators or, under Skip, neither.
            Then its hidden states pass through, and its keys and values are made and read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: KeepCell = Full()
    attention: AttentionCell = Full()
    ffn: FFNCell = Full()
    visible: VisibleCell = Full()
    decode: DecodeCell = Full()
    before: BeforeCell = Full()

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A column that few plans have is written for them alone, so that files of the others stay as they are."""
        written: dict[str, Any] = handler(self)
        if self.before.is_full:
            written.pop("before", None)
        return written

    @property
    def cells(self) -> tuple[Cell, ...]:
        """In the order of the columns."""
        return (self.keep, self.attention, self.ffn, self.visible, self.decode, self.before)

    @property
    def planned(self) -> dict[str, Cell]:
        """The cells that are not full, by column."""
        return {column: cell for column, cell in self if not cell.is_full}

    @property
    def is_full(self) -> bool:
        """Whether nothing is planned."""
        return all(cell.is_full for cell in self.cells)

    @property
    def ranks(self) -> tuple[str, ...]:
        """The ranks computed at this layer's input."""
        return tuple(dict.fromkeys(cell.ranks_by for cell in self.cells if cell.ranks_by))

    def bound(self, weights: Mapping[str, Weights]) -> LayerPlan:
        """This row with the numbers of its fitted cells, which are among ``weights``, by name."""
        cells = {column: getattr(self, column) for column in LayerPlan.model_fields}
        fitted = {c: {**dict(cell), "weights": weights[cell.weights.name]} for c, cell in cells.items() if cell.affine}
        return LayerPlan(**{**cells, **fitted}) if fitted else self

    @property
    def work(self) -> LayerWork:
        """What the layer computes. Made anew at each call: the runtime makes it once for a plan."""
        parts = _attention(self)
        return LayerWork(
            attention=parts,
            key=LIVE if any(part.key == LIVE for part in parts) else TEXT,
            cached=TEXT if self.visible.skips else RowSet("all", self.decode.visual),
            ffn=RowSet("all", self.ffn.visual, self.before.is_full),
            neurons=self.ffn.neurons,
            attention_affine=self.attention.affine,
            ffn_affine=self.ffn.affine,
        )


COLUMNS = tuple(LayerPlan.model_fields)


def _attention(row: LayerPlan) -> tuple[AttentionPart, ...]:
    """Text and visual rows together, or apart where they do not attend to the same."""
    queries, window, before = row.attention.visual, row.attention.window, row.before.is_full
    if row.visible.is_full and window is None:
        return (AttentionPart(RowSet("all", queries, before), LIVE),)
    text = AttentionPart(RowSet("all", "none", before), RowSet("all", row.visible.visual), is_sink=row.visible.is_sink)
    return (text,) if queries == "none" else (text, AttentionPart(RowSet("none", queries), LIVE, window))


def spans(layers: Iterable[int]) -> list[str]:
    """Ascending layers with runs written as ranges: ``0`` and ``3-5`` for 0, 3, 4, 5."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
