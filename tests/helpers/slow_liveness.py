"""What a prefill reads, row by row: everything that can be reached from what it returns, in the graph of what is
computed from what. Says once more, without kinds of rows, what :mod:`lookless.liveness` says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lookless import Full, Keep, LayerPlan, Sink, Skip, Top, Window
from lookless.ranks import RANKS

Node = tuple[str, int, int]  # what, of which layer, of which row


class Reading:
    """A prompt whose rows are ``visual`` or not, under a plan's ``rows``; layer l reads the keys of ``owners[l]``."""

    def __init__(self, rows: Sequence[LayerPlan], visual: Sequence[bool], owners: Sequence[int]) -> None:
        self.rows, self.visual, self.owners = rows, visual, owners
        self.alive, alive = [], {r for r, is_visual in enumerate(visual) if is_visual}
        for row in rows:
            if isinstance(row.keep, Keep):  # which ones, is all the same
                wanted = 0 if row.keep.withdraws else max(1, len(alive) // 2)
                alive = set(sorted(alive)[:wanted])
            self.alive.append(alive)

    def reached(self, kept: set[int], cached: bool) -> set[Node]:
        """Of what is ``kept`` after the last layer and, if so, ``cached``, all that is read: nodes ``state`` (after a
        layer), ``query``, ``ffn``, ``key`` and ``rank``."""
        found: set[Node] = set()
        waiting: list[Node] = [("state", len(self.rows) - 1, r) for r in kept]
        waiting += [node for layer in range(len(self.rows)) for node in self._roots(layer, cached)]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += self._reads(*node)
        return found

    def _roots(self, layer: int, cached: bool) -> Iterator[Node]:
        row = self.rows[layer]
        if row.keep.ranks_by or row.decode.ranks_by:
            yield "rank", layer, 0
        if cached and self.owners[layer] == layer:
            yield from (("key", layer, r) for r in self._present(layer) if not self.visual[r] or self._caches(row))

    def _caches(self, row: LayerPlan) -> bool:
        return (
            row.visible != Skip() and row.decode != Skip() and not (isinstance(row.decode, Top) and row.decode.is_none)
        )

    def _reads(self, what: str, layer: int, r: int) -> Iterator[Node]:
        """What the node is computed from."""
        if what == "state":
            if layer > 0:
                yield "state", layer - 1, r
            if r in self._present(layer):
                row, frozen = self.rows[layer], self.rows[layer].before == Skip()
                yield from (("query", layer, r),) if self._takes_part(row.attention, r, frozen) else ()
                yield from (("ffn", layer, r),) if self._takes_part(row.ffn, r, frozen) else ()
        elif what == "query":
            yield from self._before(layer, [r])
            yield from (
                ("key", self.owners[layer], s) for s in self._present(layer) if s <= r and self._sees(layer, r, s)
            )
            yield from self._asks(self.rows[layer].attention, layer, r)
        elif what == "ffn":
            yield from self._asks(self.rows[layer].ffn, layer, r)
        elif what == "key":
            yield from self._before(layer, [r])
        elif what == "rank":
            yield from self._before(layer, self._present(layer))
            if layer > 0 and any(RANKS[rank].reads == "previous" for rank in self.rows[layer].ranks):
                yield from (("key", self.owners[layer - 1], s) for s in self._present(layer))

    def _before(self, layer: int, rows: Sequence[int]) -> Iterator[Node]:
        if layer > 0:
            yield from (("state", layer - 1, r) for r in rows)

    def _asks(self, cell: object, layer: int, r: int) -> Iterator[Node]:
        if self.visual[r] and isinstance(cell, Top):
            yield "rank", layer, 0

    def _present(self, layer: int) -> list[int]:
        return [r for r, is_visual in enumerate(self.visual) if not is_visual or r in self.alive[layer]]

    def _takes_part(self, cell: object, r: int, is_frozen: bool) -> bool:
        whole = isinstance(cell, Full | Window) or (isinstance(cell, Top) and not cell.is_none)
        return whole if self.visual[r] else not (self._is_before(r) and is_frozen)

    def _is_before(self, r: int) -> bool:
        """Whether row ``r`` is before the image."""
        return not any(self.visual[: r + 1]) and any(self.visual)

    def _sees(self, layer: int, r: int, s: int) -> bool:
        row = self.rows[layer]
        if not self.visual[s]:
            return True
        if not self.visual[r]:
            return isinstance(row.visible, Full | Sink)
        return not isinstance(row.attention, Window) or r - s < row.attention.size
