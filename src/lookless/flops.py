"""What a prefill costs, from geometry and plan alone.

Counted: the decoder layers' matrix products at 2 FLOPs per multiply-add, attention as the full rectangle of
queries by keys. Not counted: the vision tower, embeddings, norms, rotary embeddings, softmax, and the output
head (one row of it is 0.003 % of LLaVA-1.5-7B). A layer with q query rows, k key rows and f FFN rows costs

    4 q d dq  +  4 k d dk  +  4 q k dq  +  6 f d m          (dq = heads x head_dim, dk = kv_heads x head_dim)

for q and o projections, k and v projections, scores and weighted values, and the gated FFN. In a mixture of experts m
is the width of the experts that one row passes, and f rows pass the router, 2 f d E, as well; a gate of heads is 2 q d
dq more. In a layer with a sliding window a query reads no more keys than that; a layer that reads the keys of another
makes none; an embedding of width e that each layer adds costs each living row 4 d e. A gated delta rule with h states
of a x b, whose rows write w columns (query, key, value, decay, rate), costs

    2 k d w  -  2 (k - q - 3) d c  +  4 q d h b  +  6 k h a b  +  6 f d m

for what rows write, gate and output projection of those that read, and decayed read, write and read of the states
(kernels that scan by chunks do more of this, and faster); rows that do not read have no query, of c columns, but for
three before those that do, which a convolution of four rows takes it to. A short convolution of c rows costs

    4 (q + c - 1) d d  +  4 q d d  +  6 f d m

for what is convolved, of rows that read and those before them, and gate and output projection. With q = k = f = n
and dq = dk = d this is 8nd^2 + 4n^2d + 6ndm, the dense layer of ShortV (arXiv 2504.00502, Sec. 4.1, there
2(t+v)(4h+3m)h + 4(t+v)^2 h); with q = t it is V-Skip's (arXiv 2606.08511, Table 2), with q = f = t ShortV's.
A map of rank r in place of an operator costs 4 d r for each living visual row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .errors import PlanError
from .geometry import Geometry
from .layer_plan import TEXT, VISUAL, AttentionPart, RowSet
from .plan import Plan

CONVOLVED = 3  #: rows before each that the convolution of a gated delta rule reads, in all models there are


@dataclass(frozen=True)
class Prefill:
    """FLOPs of one prefill.

    Attributes:
        total: of all decoder layers.
        visual: the share of ``total`` spent on visual rows alone: their projections, their FFN, and their attention
            to visual keys. VisiPruner (arXiv 2510.17205, App. M) reports this one, halved, as it counts
            multiply-adds; do not compare it with whole-prefill figures.
        experts: how many experts' weights are read, all layers together, if routers pick at random. Where few rows are
            left this, and not the FLOPs, is what a mixture of experts costs: 1,000 rows of Qwen3-VL-30B-A3B read all
            128 experts of a layer, and so do 100 (127.8); 10 read 61.
    """

    total: float
    visual: float
    experts: float = 0.0

    @property
    def total_tflops(self) -> float:
        return self.total / 1e12

    @property
    def visual_tflops(self) -> float:
        return self.visual / 1e12


@dataclass(frozen=True)
class Load:
    """What one layer computes of one prompt, in the words of :func:`layer`, and FLOPs of maps beside it."""

    query: float
    key: float
    ffn: float
    pairs: float
    probe: float
    live: float
    asked: float | None
    maps: float

    def flops(self, geometry: Geometry, index: int) -> float:
        """Of layer ``index``."""
        given = {name: value for name, value in vars(self).items() if name != "maps"}
        return layer(geometry, index, **given) + self.maps


def layer(
    geometry: Geometry,
    index: int = 0,
    *,
    query: float,
    key: float,
    ffn: float,
    pairs: float | None = None,
    probe: float = 0,
    live: float | None = None,
    asked: float | None = None,
) -> float:
    """FLOPs of layer ``index`` with ``query`` query rows, ``key`` key rows and ``ffn`` FFN rows.

    ``pairs`` is how many (query, key) pairs are scored, by default each query row with each key row; of a gated delta
    rule how many rows are scanned, by default the key rows; ``asked`` is how many of these make queries, by default
    those that query and three more. ``ffn`` counts a row that uses a part of the neurons as that part. ``probe`` rows
    pass the first two of the FFN's three matrices. ``live`` rows, by default the key rows, undergo what no cell spares.
    """
    g, delta = geometry, geometry.delta_of(index)
    if delta is not None:
        scanned = key if pairs is None else pairs
        asked = min(key, query + CONVOLVED) if asked is None else asked
        written = 2 * g.hidden * (key * (delta.written_width - delta.key_width) + asked * delta.key_width)
        read = 4 * query * g.hidden * delta.read_width
        return written + read + 6 * scanned * delta.state + _ffn(g, index, ffn, probe)
    pairs = query * min(key, g.reach_of(index) or key) if pairs is None else pairs
    wide, made = g.query_width(index), (1 + g.has_values(index)) * g.key_width(index)
    convolution = g.convolution_of(index)
    if convolution is not None:
        read = min(key, query + convolution.kernel - 1) if asked is None else asked
        return 4 * g.hidden**2 * (read + query) + _ffn(g, index, ffn, probe)
    projections = (4 + 2 * g.gated) * query * g.hidden * wide + 2 * key * g.hidden * made
    embedded = 4 * (key if live is None else live) * g.hidden * g.embedded
    return projections + 4 * pairs * wide + embedded + _ffn(g, index, ffn, probe)


def _ffn(g: Geometry, index: int, rows: float, probe: float) -> float:
    """Gate, up and down of ``rows``, gate and up of ``probe`` rows, and what routes them."""
    experts = g.experts_of(index)
    gates = 0
    if experts is not None:
        gates = experts.count + bool(experts.shared and experts.weighed and not experts.beside)
    return (6 * rows + 4 * probe) * g.hidden * g.ffn_width(index) + 2 * rows * g.hidden * gates


def prefill(
    geometry: Geometry,
    *,
    visual: float,
    text: float,
    plan: Plan | None = None,
    before: float | None = None,
    kept: float | None = None,
) -> Prefill:
    """FLOPs of the prefill of one prompt with ``visual`` and ``text`` tokens (means over a data set may be fractions).

    The plan is priced as it is written, dead work included, as the papers do. Given ``kept``, what runs is priced: a
    call that returns the logits of so many text rows, one in ``generate``, in which dead work is skipped
    (:meth:`lookless.Plan.works`).

    ``before`` is how many of the text tokens come before the (one) image; a plan that freezes these is priced as if
    there were none where it is not given. The papers count every query over all keys it may be shown, and a
    :class:`~lookless.cells.Window` to the token. Given ``before``, what the runtime computes for one unpadded prompt is
    counted: text before the image is scored with the keys before it only, and a window in blocks. (Short runs of text
    share a call, which scores up to 16,384 pairs of query and key more, in all heads, and takes less time.)

    LLaVA-1.5-7B as papers print it, 8.54 TFLOPs, and the share of it that is left when 19 layers are frozen:

        >>> from lookless import Geometry, Plan, Skip
        >>> model = Geometry.preset("LLaVA-1.5-7B")
        >>> dense = prefill(model, visual=576, text=66.6)
        >>> f"{dense.total_tflops:.2f}"
        '8.54'
        >>> frozen = Plan.full(model).at(range(13, 32), attention=Skip(), ffn=Skip())
        >>> f"{prefill(model, visual=576, text=66.6, plan=frozen).total / dense.total:.1%}"
        '55.4%'

    Raises:
        PlanMismatchError: the plan is for another architecture.
        PlanError: a negative count, or the plan is not static.
    """
    if visual < 0 or text < 0 or not 0 <= (before or 0) <= text or not 0 <= (kept or 0) <= text:
        raise PlanError(
            f"token counts must not be negative: visual {visual}, text {text}, of it before {before}, kept {kept}."
        )
    plan = plan or Plan.full(geometry)
    plan.check(geometry)
    return Prefill(
        total=_total(geometry, loads(geometry, plan, visual, text, before, kept)),
        visual=_total(geometry, loads(geometry, plan, visual, 0, None, None if kept is None else 0)),
        experts=_experts(geometry, plan.rows(visual, text, kept, before=before or 0)),
    )


def loads(
    g: Geometry, plan: Plan, visual: float, text: float, before: float | None = None, kept: float | None = None
) -> Iterator[Load]:
    """What each layer computes of one prompt under ``plan``; the arguments are those of :func:`prefill`."""
    works = plan.works(kept=kept is not None)
    rows_of = plan.rows(visual, text, kept, before=before or 0)
    each = zip(works, rows_of, plan.alive(visual), strict=True)
    for index, (work, rows, alive) in enumerate(each):
        ffn, probe = rows["ffn"], 0.0
        if work.neurons is not None and alive:
            ffn += alive * work.neurons.channels(g.ffn_width(index)) / g.ffn_width(index)
            probe = work.neurons.probes(alive)
        count = _Count(text, visual, alive, before, kept or 0, g.reach_of(index), index in g.both_ways)
        count_pairs = count.pairs if g.state_of(index) is None else count.scanned
        yield Load(
            query=rows["query"],
            key=rows["key"],
            ffn=ffn,
            pairs=sum(map(count_pairs, work.attention)),
            probe=probe,
            live=text + alive,
            # Rows that a rank scatters have their queries' neighbours anywhere: all are made.
            asked=rows["key"] if any(part.query.choice for part in work.attention) else None,
            maps=sum(4 * alive * g.hidden * cell.inner for cell in work.affine),
        )


def _total(g: Geometry, each: Iterable[Load]) -> float:
    """FLOPs of all layers."""
    return sum(load.flops(g, index) for index, load in enumerate(each))


def _experts(g: Geometry, rows: Sequence[Mapping[str, float]]) -> float:
    """As :attr:`Prefill.experts`, of the ``rows`` of each layer."""
    layers = ((g.experts_of(index), mine["ffn"]) for index, mine in enumerate(rows))
    return sum(experts.read(ffn) for experts, ffn in layers if experts is not None)


@dataclass(frozen=True)
class _Count:
    """Counts the scores of one prompt: ``text`` tokens, ``before`` of them before the image if that is known, and
    ``alive`` of ``visual`` tokens; of the text, ``kept`` tokens at the end. A row reads no more than ``reach`` keys;
    None for all before it. Where visual rows see each other ``both_ways``, they are scored with all keys."""

    text: float
    visual: float
    alive: float
    before: float | None
    kept: float
    reach: int | None = None
    both_ways: bool = False

    def rows(self, rows: RowSet) -> float:
        before = self.before or 0
        return rows.size(text=self.text, visual=self.visual, alive=self.alive, kept=self.kept, before=before)

    def scanned(self, part: AttentionPart) -> float:
        """Rows that a scan of a gated delta rule goes over for one part; none where nobody would read."""
        return self.rows(part.key) if self.rows(part.query) else 0

    def pairs(self, part: AttentionPart) -> float:
        """(query, key) pairs that are scored in one part of a layer's attention."""
        query, key = self.rows(part.query), self.rows(part.key)
        if self.both_ways and part.query.visual != "none":
            return query * key
        reach = self.reach if self.reach is not None and self.reach < self.text + self.visual else None
        if self.before is None:
            keys = key if part.window is None else self.text + min(part.window.size, self.alive)
            return query * (keys if reach is None else min(keys, reach))
        if part.window is not None:
            start, end = int(self.before), int(self.before + self.alive)
            scored = 0.0
            for first, last, low in part.window.blocks(start, end):
                near = 0 if reach is None else max(0, first - reach + 1)
                scored += (last - first) * (max(0.0, self.before - near) + last - max(start, low, near))
            return scored
        if reach is not None:
            return self._slid(part, reach)
        if part.query == TEXT and part.key != TEXT and self.alive:  # of text before the image no key of it
            return self.before * self.before + (query - self.before) * key
        # Visual rows that are one run score no key after it; rows that a rank scatters score all.
        return query * (self.before + self.alive if part.query == VISUAL else key)

    def _slid(self, part: AttentionPart, reach: int) -> float:
        """As :meth:`pairs` where a window slides: blocks of ``reach`` queries see the keys of all their windows. Of
        visual tokens the first are taken to be those alive or chosen."""
        queries, keys = self._runs(part.query), self._runs(part.key)
        scored = 0
        for start, end in queries:
            for first in range(start, end, reach):
                last = min(first + reach, end)
                seen = (min(high, last) - max(low, first - reach + 1) for low, high in keys)
                scored += (last - first) * sum(max(0, n) for n in seen)
        return scored

    def _runs(self, rows: RowSet) -> list[tuple[int, int]]:
        """Runs of rows in the prompt, (first, last + 1)."""
        assert self.before is not None
        start, visual = int(self.before), int(self.visual)
        chosen = int(rows.size(text=0, visual=self.visual, alive=self.alive))
        end = int(self.text) + visual
        first = (0, start if rows.before else 0)
        words = {"none": (), "kept": ((end - int(self.kept), end),), "all": (first, (start + visual, end))}
        runs = [*words[rows.text], (start, start + chosen)]
        if rows.text == "all" and rows.before and chosen == visual:
            runs = [(0, end)]
        return [(low, high) for low, high in runs if high > low]
