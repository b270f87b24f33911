"""What a joint search may choose: the cells of each layer, and what happens to the number of visual tokens.

A *row* is what visual tokens do in one layer; every layer chooses one. A *frame* is the ``keep`` column: where tokens
are pruned, by which rank, and where the image is withdrawn; a plan has one. Cells that are fitted to a layer are rows
of that layer alone: add them to :attr:`Menu.special`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..cells import Keep, Neurons, Skip, Window
from ..geometry import Geometry
from ..layer_plan import LayerPlan
from ..limits import can_run
from ..plan import Plan
from ..ranks import RANKS as RANKS_OF_TOKENS

SKIP = Skip()
FULL = LayerPlan()
#: Rows without numbers of their own, mildest first.
ROWS = (
    FULL,
    LayerPlan(attention=SKIP),
    LayerPlan(ffn=SKIP),
    LayerPlan(attention=SKIP, visible=SKIP),
    LayerPlan(attention=SKIP, ffn=SKIP),
    LayerPlan(attention=SKIP, ffn=SKIP, visible=SKIP),
)
#: Shares of visual tokens that a pruning may keep.
SHARES = (0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.12, 0.06)
#: Ranks that the decoder computes; all but two need no question.
RANKS = ("diversity", "attention_norm", "value_aware", "instruction_attention", "last_query_attention", "random")

#: Ranks of the vision tower, before the first layer alone.
TOWER = ("tower_attention_then_diversity", "tower_attention")

#: The ``keep`` column of a plan, by layer.
Frame = tuple[tuple[int, Keep], ...]


@dataclass(frozen=True)
class Menu:
    """What a search chooses from.

    Attributes:
        layers: of the model.
        rows: of every layer; the first is full.
        special: of single layers besides, in one order: fitted cells.
        shares, ranks: of prunings.
        tower: further ranks, of prunings before the first layer.
        prune_at: layers at whose input tokens may be pruned at the start of the search; later it moves freely.
    """

    layers: int
    rows: tuple[LayerPlan, ...] = ROWS
    special: Mapping[int, tuple[LayerPlan, ...]] = field(default_factory=dict)
    shares: tuple[float, ...] = SHARES
    ranks: tuple[str, ...] = RANKS
    tower: tuple[str, ...] = ()
    prune_at: tuple[int, ...] = ()

    @classmethod
    def standard(cls, layers: int, visual: float, *, tower: bool = False) -> Menu:
        """For a model of ``layers`` layers and prompts of ``visual`` visual tokens: a window of a quarter of them and a
        quarter of the neurons besides. ``tower``: its vision tower's attention can be followed to visual tokens."""
        reduced = (
            LayerPlan(attention=Window(max(1, round(visual / 4)))),
            LayerPlan(ffn=Neurons(0.25)),
            LayerPlan(attention=SKIP, ffn=Neurons(0.25)),
        )
        depths = dict.fromkeys(round(layers * share) for share in (0, 1 / 6, 1 / 3, 1 / 2, 2 / 3))
        return cls(layers, rows=(*ROWS, *reduced), tower=TOWER if tower else (), prune_at=tuple(depths))

    @classmethod
    def served(cls, layers: int) -> Menu:
        """What an engine with a paged cache can run in ``layers``: attention and FFN skipped, and every token kept."""
        return cls(layers, rows=tuple(row for row in ROWS if row.visible.is_full), shares=(), ranks=())

    def within(self, geometry: Geometry) -> Menu:
        """Without what no layer of ``geometry`` can run; what some layers can is of those alone."""
        every = range(self.layers)
        rows = tuple(row for row in self.rows if all(can_run(row, geometry, layer) for layer in every))
        some = [row for row in self.rows if row not in rows]
        special = {
            layer: tuple(row for row in (*some, *self.special.get(layer, ())) if can_run(row, geometry, layer))
            for layer in every
        }
        ranks = tuple(
            rank for rank in self.ranks if geometry.states is None or not RANKS_OF_TOKENS[rank].heads
        )  # a frame moves freely, so its rank must be computed at any layer
        return replace(self, rows=rows, ranks=ranks, special={layer: mine for layer, mine in special.items() if mine})

    def at(self, layer: int) -> tuple[LayerPlan, ...]:
        """The rows of ``layer``."""
        return (*self.rows, *self.special.get(layer, ()))

    def having(self, rows: Sequence[Sequence[LayerPlan]]) -> Menu:
        """This menu with every other row that ``rows`` has of a layer, ``[layers][choices]``."""
        more = {layer: tuple(row for row in choices if row not in self.rows) for layer, choices in enumerate(rows)}
        return replace(self, special={layer: choices for layer, choices in more.items() if choices})

    def ranks_at(self, layer: int) -> tuple[str, ...]:
        """By which tokens can be pruned at the input of ``layer``."""
        return self.ranks if layer else (*self.ranks, *self.tower)

    def withdrawals(self) -> Iterator[Frame]:
        """None, then from each layer but the first on; none alone, where no token may go."""
        yield ()
        for layer in range(self.layers - 1, 0, -1) if self.ranks else ():
            yield ((layer, Keep(0)),)

    def prunings(self) -> Iterator[Frame]:
        """Each share at each layer of :attr:`prune_at`, by the first rank of the decoder, and of the tower."""
        for layer in self.prune_at:
            for rank in (*self.ranks[:1], *(() if layer else self.tower[:1])):
                for share in self.shares:
                    yield ((layer, Keep(share, rank=rank)),)


def framed(rows: Sequence[LayerPlan], frame: Frame) -> tuple[LayerPlan, ...]:
    """``rows`` with ``frame`` for their ``keep`` column."""
    keeps = dict(frame)
    return tuple(
        row.model_copy(update={"keep": keeps[layer]}) if layer in keeps else _without_keep(row)
        for layer, row in enumerate(rows)
    )


def _without_keep(row: LayerPlan) -> LayerPlan:
    return row if row.keep.is_full else row.model_copy(update={"keep": FULL.keep})


def frame_of(plan: Plan) -> Frame:
    """The ``keep`` column of a plan; cells that filter are no part of one."""
    return tuple((layer, row.keep) for layer, row in enumerate(plan.layers) if isinstance(row.keep, Keep))
