"""The cells of a plan: how visual tokens take part in one operator of one layer.

Every ``ratio`` is the fraction *kept*, of the visual tokens the prompt came with (not of those still alive).

The meaning of a cell is written here and nowhere else: each class says which visual tokens take part, what the rest
do, what it costs and who can run it (:class:`Cell`). Plans, FLOPs, the runtime, the lower bound and serving read that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .ranks import RANKS
from .weights import Weights


class Cell(BaseModel):
    """Base of all cells; frozen. The first field may be given by position: ``Keep(0.5, rank="random")``.

    The defaults here are those of an operator that runs on every visual token. A new cell overrides what differs.

    Attributes:
        is_full: nothing is planned.
        is_served: an engine with a paged cache can run it, as attention or FFN.
        is_static: the number of rows under it is known before the prompt is seen.
        is_sink: text that attends to visual tokens reads the first one's value from each.
        compares: what it does to a visual token depends on the other ones of the prompt, before and after it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_full: ClassVar[bool] = False
    is_served: ClassVar[bool] = False
    is_static: ClassVar[bool] = True
    is_sink: ClassVar[bool] = False

    @property
    def compares(self) -> bool:
        return False

    @property
    def visual(self) -> Part:
        """The living visual tokens that take part whole: all, none, or those that a choice chooses."""
        return "all"

    @property
    def skips(self) -> bool:
        """Whether no visual token takes any part."""
        return False

    @property
    def window(self) -> Window | None:
        """The window through which visual tokens attend to visual tokens; None without one."""
        return None

    @property
    def neurons(self) -> Neurons | None:
        """The part of the FFN that passes visual tokens that do not pass the whole; None for no part."""
        return None

    @property
    def affine(self) -> Affine | None:
        """The map that visual tokens pass in place of the operator; None without one."""
        return None

    @property
    def ranks_by(self) -> str | None:
        """The rank that is computed at the layer's input, a key of :data:`RANKS`; None without one."""
        return None

    @property
    def sharded_choice(self) -> str | None:
        """The choice that each process would make by its own heads or neurons under tensor parallelism, in words."""
        return f"ranks by {self.ranks_by}" if self.ranks_by and RANKS[self.ranks_by].heads else None

    @property
    def withdraws(self) -> bool:
        """As ``keep``: whether no visual token stays alive."""
        return False

    def alive_after(self, visual: float, alive: float) -> float:
        """As ``keep``: how many of ``alive`` tokens stay alive, out of the ``visual`` that the prompt came with."""
        return alive

    def __str__(self) -> str:
        return type(self).__name__.lower()


class Full(Cell):
    """The operator runs on every visual token, as the model was trained."""

    kind: Literal["full"] = "full"
    is_full: ClassVar[bool] = True
    is_served: ClassVar[bool] = True


class Skip(Cell):
    """The operator runs on no visual token: their hidden states pass through unchanged.

    As a layer's ``attention``: visual tokens issue no queries, so no query, no attention and no output projection is
    computed for them; their keys and values are computed and cached, and text attends to them. This is V-Skip's bypass
    (arXiv 2606.08511, Eq. 6) in the reading "no attention output". Two other readings of that equation exist. As
    printed it adds ``LN(H_V)`` to the residual stream, which costs the same and changes the states; taken as the
    "heterogeneous mask" of its text, visual tokens still attend to the text before them, which needs their
    queries and output projections and contradicts the FLOPs the paper reports (8.43 and not 7.69 TFLOPs on
    LLaVA-1.5-7B with 19 layers). Dropping the branch is the only reading that gives 7.69, and what ShortV
    (arXiv 2504.00502) and operator skipping (arXiv 2606.31903) do in the code they released.

    As ``ffn``: visual tokens are no FFN rows. As ``visible``: text does not attend to this layer's visual keys and
    values, and they are not cached. As ``decode``: the prompt attends to them, but they are not cached, so that neither
    the answer nor a later turn does.
    """

    kind: Literal["skip"] = "skip"
    is_served: ClassVar[bool] = True

    @property
    def visual(self) -> Part:
        return "none"

    @property
    def skips(self) -> bool:
        return True


class Choice(Cell):
    """Some visual tokens, the best by a rank. Which and how many is the subclass's to say."""

    @property
    def is_none(self) -> bool:
        """Whether no token is chosen."""
        return False

    def of(self, visual: float) -> float:
        """How many of ``visual`` tokens: a whole number of a whole number."""
        raise NotImplementedError

    @property
    def compares(self) -> bool:
        return not self.is_none


class _Share(Choice):
    """So many visual tokens, the best by a rank."""

    ratio: float | None = Field(default=None, ge=0, le=1)
    count: int | None = Field(default=None, ge=0)
    rank: str | None = None

    def __init__(self, *ratio: float, **fields: Any) -> None:
        super().__init__(**dict(zip(("ratio",), ratio, strict=False)), **fields)

    @model_validator(mode="after")
    def _whole(self) -> _Share:
        if (self.ratio is None) == (self.count is None):
            raise ValueError(f"{self.__class__.__name__} takes either a ratio or a count")
        if not (self.ratio or self.count):
            return self
        if self.rank is None:
            raise ValueError(f"{self.__class__.__name__} of some tokens needs a rank, one of {', '.join(RANKS)}")
        if self.rank not in RANKS:
            raise ValueError(f"there is no rank {self.rank!r}; ranks are {', '.join(RANKS)}")
        return self

    def of(self, visual: float) -> float:
        """How many of ``visual`` tokens: whole tokens of a whole number, at least one unless none are wanted."""
        if self.count is not None:
            return min(self.count, visual)
        assert self.ratio is not None
        if isinstance(visual, int):
            return min(visual, max(1, round(self.ratio * visual))) if self.ratio else 0
        return self.ratio * visual

    @property
    def is_none(self) -> bool:
        return not (self.ratio or self.count)

    @property
    def ranks_by(self) -> str | None:
        return None if self.is_none else self.rank

    def _amount(self) -> str:
        return f"{self.ratio:g}" if self.ratio is not None else f"{self.count} tokens"


class Keep(_Share):
    """As ``keep``: from this layer's input on, only the best visual tokens are alive; ``Keep(0)`` withdraws them all.

    A token once dropped is a dead row: no operator of any later layer touches it, and no later cache holds it.

    Attributes:
        recycle: of the dropped tokens, this share (the best of them) is not lost but merged: clustered into a tenth as
            many tokens, each the mean of its cluster, which stay alive with the kept (SparseVLM, arXiv 2410.04417).
    """

    kind: Literal["keep"] = "keep"

    recycle: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _recycles_beside_kept_ones(self) -> Keep:
        if self.recycle and self.is_none:
            raise ValueError(
                f"Keep of no tokens cannot recycle {self.recycle:g} of them: give a ratio or count above 0"
            )
        return self

    def __init__(self, *ratio: float, **fields: Any) -> None:
        super().__init__(*ratio, **fields)

    def recycled(self, visual: float, alive: float) -> float:
        """How many merged tokens stay alive with the kept ones, of ``alive`` out of ``visual``."""
        if not self.recycle:
            return 0
        dropped = max(0, alive - self.of(visual))
        merged = self.recycle * dropped
        return min(dropped, int(merged) // 10 + 1 if isinstance(visual, int) else merged / 10 + 1) if merged else 0

    @property
    def withdraws(self) -> bool:
        return self.is_none

    def alive_after(self, visual: float, alive: float) -> float:
        return min(alive, self.of(visual) + self.recycled(visual, alive))

    def __str__(self) -> str:
        if self.is_none:
            return "none"
        return f"{self._amount()} by {self.rank}" + (f", recycling {self.recycle:g}" if self.recycle else "")


class Top(_Share):
    """The partial update: only the best visual tokens run the operator.

    The hidden states of the rest pass through unchanged; the rest stay key rows, and may be among the best again in a
    later layer. As ``decode``: only the best are cached.
    """

    kind: Literal["top"] = "top"

    def __init__(self, *ratio: float, **fields: Any) -> None:
        super().__init__(*ratio, **fields)

    @property
    def visual(self) -> Part:
        return "none" if self.is_none else self

    @property
    def skips(self) -> bool:
        return self.is_none

    def __str__(self) -> str:
        return f"top {self._amount()} by {self.rank}"


class Window(Cell):
    """As ``attention``: a visual token attends to all text before it, and to visual tokens at most ``size - 1``
    positions back.

    RedundancyLens' Hollow Attention (arXiv 2501.19036). Distance is in positions of the sequence, as text between two
    images separates them too. No score outside the window is computed, but for the corners of a block: queries go in
    blocks of a quarter window, which see the keys of all their windows.
    """

    kind: Literal["window"] = "window"
    size: int = Field(gt=0)

    def __init__(self, *size: int, **fields: Any) -> None:
        super().__init__(**dict(zip(("size",), size, strict=False)), **fields)

    @property
    def window(self) -> Window:
        return self

    def blocks(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(first query, last query + 1, first key) of each block of the visual run from ``start`` to ``end``."""
        step = max(16, self.size // 4)
        for first in range(start, end, step):
            yield first, min(first + step, end), max(0, first - self.size + 1)

    def __str__(self) -> str:
        return f"window {self.size}"


class Neurons(Cell):
    """As ``ffn``: visual tokens use only the ``ratio`` of channels that a ``probe`` share of them excites most.

    RedundancyLens' probe-activated dynamic FFN (arXiv 2501.19036): the inner activations of evenly spaced probe tokens
    are computed in full; the channels with the highest mean magnitude are used for all visual tokens of the prompt.
    """

    kind: Literal["neurons"] = "neurons"
    ratio: float = Field(gt=0, le=1)
    probe: float = Field(default=0.1, gt=0, le=1)

    def __init__(self, *ratio: float, **fields: Any) -> None:
        super().__init__(**dict(zip(("ratio",), ratio, strict=False)), **fields)

    @property
    def compares(self) -> bool:
        return True

    @property
    def visual(self) -> Part:
        return "none"

    @property
    def neurons(self) -> Neurons:
        return self

    @property
    def sharded_choice(self) -> str:
        return "picks neurons"

    def probes(self, visual: float) -> float:
        """How many of ``visual`` tokens are probed."""
        return max(1, round(self.probe * visual)) if isinstance(visual, int) else self.probe * visual

    def channels(self, intermediate: int) -> int:
        """How many of the FFN's ``intermediate`` channels a visual token uses; one at least."""
        return max(1, round(self.ratio * intermediate))

    def __str__(self) -> str:
        return f"{self.ratio:g} of neurons"


class Affine(Cell):
    """As ``attention`` or ``ffn``: visual tokens do not run the operator, and a small fitted map takes its place.

    To the hidden state ``x`` of a visual token ``constant + up @ down @ norm(x)`` is added, where ``norm`` is the one
    before the operator. All else is as under a :class:`Skip`. See :mod:`lookless.fitted` for the cells.
    """

    is_served: ClassVar[bool] = True
    weights: Weights

    @property
    def visual(self) -> Part:
        return "none"

    @property
    def affine(self) -> Affine:
        return self

    @property
    def inner(self) -> int:
        """Width between the two matrices of the map; 0 of a constant."""
        return 0


class Sink(Cell):
    """As ``visible``: text attends to visual tokens as before, but the value of each is the first one's.

    VisiPruner (arXiv 2510.17205) finds that the first layer needs somewhere to put its attention, and not what is
    there: all weight on visual tokens moves to the first of them, which equals giving each that one's value.
    """

    kind: Literal["sink"] = "sink"
    is_sink: ClassVar[bool] = True

    @property
    def compares(self) -> bool:
        return True


class Filter(Cell):
    """As ``keep`` of every middle and deep layer: VisiPruner's filter and exit (arXiv 2510.17205, Sec. 4), per prompt.

    The contribution of a visual token to the last prompt token in the layer before is attention x value. Where taking
    some token's away first turns that layer's attention output to a cosine below ``cosine``, tokens with a contribution
    longer than ``norm`` are kept and the others dropped. From then on a layer in which no token's contribution turns
    the output below ``exit_cosine`` is idle; after ``patience`` idle layers (not necessarily in a row, as in the code
    the authors released; their text says in a row) all visual tokens are withdrawn.
    """

    kind: Literal["filter"] = "filter"
    is_static: ClassVar[bool] = False
    cosine: float = 0.995
    norm: float = 0.2
    exit_cosine: float = 0.999
    patience: int = Field(default=2, gt=0)

    @property
    def compares(self) -> bool:
        return True

    @property
    def ranks_by(self) -> str:
        return "value_aware"

    def __str__(self) -> str:
        return f"filter {self.norm:g}, then exit"


#: Which visual tokens take part whole: see :attr:`Cell.visual`.
Part = Literal["all", "none"] | Choice
