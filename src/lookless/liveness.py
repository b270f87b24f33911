"""Which rows of each layer anyone reads.

What a prefill returns is read from the last layer's rows whose logits are kept, and from the cache. Going down from
there, a layer's rows are read twice over:

* its **states**, by whoever reads those states one layer later, or makes keys and values of them there. Rows whose
  states nobody reads need no query, output projection and FFN;
* its **keys** and values, by the rows that query in this layer and in those that share its keys, and by the cache.

In every decoder each row's keys in the last layer are read by the rows behind it, so of the layers below all states
are read; of the last layer the kept ones alone are. Where the last layers share the keys of an earlier one, no row but
the kept ones is read from that layer's queries on. Where text attends to no visual key in the last layers, no visual
state is read there.

Rows are told apart by kind, as a plan does: a kept row is taken to be the last one, which every key is read by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .cells import Cell, Full, Skip
from .layer_plan import LIVE, NONE, TEXT, LayerPlan, LayerWork, RowSet, Words

_ORDER: tuple[Words, ...] = ("none", "kept", "all")


@dataclass(frozen=True)
class Read:
    """What anyone reads of one layer.

    Attributes:
        row: of the plan, without the cells' dead work.
        states: rows whose states after the layer are read.
        keys: rows whose keys and values are read; none in a layer that shares those of an earlier one.
    """

    row: LayerPlan
    states: RowSet
    keys: RowSet

    @property
    def work(self) -> LayerWork:
        """What the layer computes of it."""
        planned, words = self.row.work, self.states.text
        attention = (replace(part, query=_at_most(part.query, words)) for part in planned.attention)
        return replace(
            planned,
            attention=tuple(part for part in attention if part.query != NONE),
            key=self.keys,
            cached=planned.cached if self.keys != NONE else NONE,
            ffn=_at_most(planned.ffn, words),
        )


def liveness(
    rows: Sequence[LayerPlan], last: RowSet, *, owners: Sequence[int] | None = None, cached: bool = True
) -> tuple[Read, ...]:
    """What anyone reads of each layer.

    Args:
        rows: of a plan.
        last: rows whose states after the last layer are read: ``KEPT`` where a call returns the logits of some text
            rows, ``TEXT`` where of all text, ``LIVE`` where of visual rows as well.
        owners: of each layer, the one whose keys and values it reads: itself, or an earlier one; None: each has its
            own.
        cached: whether keys and values are kept for later calls.

    The last layer of a model with rows kept, and of one that shares keys of the second layer in its last two:

    >>> from lookless.layer_plan import KEPT, LayerPlan
    >>> [read.states.text for read in liveness([LayerPlan()] * 4, KEPT)]
    ['all', 'all', 'all', 'kept']
    >>> [read.states.text for read in liveness([LayerPlan()] * 4, KEPT, owners=[0, 1, 1, 1])]
    ['all', 'kept', 'kept', 'kept']
    """
    owners = range(len(rows)) if owners is None else owners
    keys, found, states = [NONE] * len(rows), [], last
    for layer in reversed(range(len(rows))):
        row, owner = rows[layer], owners[layer]
        if states.visual == "none":
            row = row.model_copy(update={"attention": Skip(), "ffn": Skip()})
        is_gone = owner != layer and any(above.keep.withdraws for above in rows[: layer + 1])
        keys[owner] = _either(keys[owner], _keys_read(row.work, states, is_gone))
        if owner == layer and cached:
            keys[layer] = _either(keys[layer], _whole(row.work.cached))
        found.append(Read(row, states, keys[layer] if owner == layer else NONE))
        states = _either(states, found[-1].keys)
        if row.ranks:  # they see all that is alive at the layer's input, and what the layer before computed
            states = LIVE
        if row.keep.withdraws:
            states = states._replace(visual="none")
    return tuple(reversed(found))


def without_idle_ranks(rows: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
    """The rows of a plan, without ranks that choose nothing, or among nothing."""
    found, gone = [], False
    for row in rows:
        idle: dict[str, Cell] = {"keep": Full()} if gone and not (row.keep.is_full or row.keep.withdraws) else {}
        gone = gone or row.keep.withdraws
        for column in ("attention", "ffn", "visible", "decode"):
            cell = getattr(row, column)
            if type(cell) is not Skip and (cell.skips or (gone and cell.ranks_by)):
                idle[column] = Skip()
        found.append(row.model_copy(update=idle) if idle else row)
    return tuple(found)


def _keys_read(work: LayerWork, states: RowSet, is_gone: bool) -> RowSet:
    """The keys that a layer's queries read, of rows whose ``states`` are; the image ``is_gone`` whose keys an earlier
    layer may have made."""
    read = NONE
    for part in work.attention:
        query, key = _at_most(part.query, states.text), _whole(part.key)
        if is_gone:
            query, key = query._replace(visual="none"), key._replace(visual="none")
        if query != NONE:
            read = _either(read, key)
    return read


def _at_most(rows: RowSet, words: Words) -> RowSet:
    """``rows``, of whose text no more than ``words``."""
    fewer = min(rows.text, words, key=_ORDER.index)
    return rows._replace(text=fewer, before=rows.before or fewer == "none")


def _either(one: RowSet, other: RowSet) -> RowSet:
    """Rows that are in one or the other; their visual tokens are all or none."""
    words = max(one.text, other.text, key=_ORDER.index)
    before = any(rows.before for rows in (one, other) if rows.text != "none")
    return RowSet(words, "none" if one.visual == other.visual == "none" else "all", before or words == "none")


def _whole(rows: RowSet) -> RowSet:
    """``rows``, with all visual tokens where a choice chooses some."""
    return LIVE if rows.visual != "none" else TEXT if rows.text != "none" else NONE
