"""The prompts of one call of the model: which tokens are text, visual or padding, and which visual ones are alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import find_packed_sequence_indices

from ..cells import Choice
from ..errors import ModelError
from ..layer_plan import LIVE, RowSet
from .calls import is_one_call
from .decoders import LLAMA, Block
from .families import Located
from .inplace import Buffers, Rotary, Turn
from .rows import Rows
from .stream import Stream

#: The keyword by which a call brings what the vision tower made of images and videos.
FEATURES = "mm_encoder_outputs"


class Prompts:
    """State of one forward pass: it begins with every visual token alive, and keep cells make it fewer.

    Attributes:
        visual: bool ``[batch, sequence]`` on the CPU, true where the token is a visual placeholder.
        text, alive: of each prompt, its text rows and its living visual rows, ascending, int64 on the CPU.
        first: of each prompt, the visual rows that it came with.
        counts: how many those are.
        chosen: of each choice of the layer about to run, the visual rows it chose, prompt by prompt.
        past: tokens of earlier turns in the cache.
        is_plain_prefill: the prompts begin the sequence under no mask but padding, so attention is causal over rows.
        is_padded: some rows are padding.
        kept: of each prompt, the text rows whose states after the last layer are read; None for all.
        end: where prompts end, and the beginning of an answer may follow: the first words of a draft.
        device: of the tensors that rows are gathered from.
        buffers: memory that all layers share.
        stream: the living rows on their way between layers.
        block: what the decoder's layers are.
        both_ways: visual tokens side by side see each other, in the layers that the block says.
        lent: the keys and values that later layers read, by the kind of their attention.
        made: what a rank had made of the keys of the layer about to run, for the layer to take; None without. Here, as
            an argument is held by who called until the layer is done, and its FFN needs the memory.
    """

    def __init__(
        self,
        visual: Tensor,
        real: Tensor | None,
        *,
        past: int = 0,
        is_plain_prefill: bool = True,
        answered: int = 0,
        modality: Tensor | None = None,
        device: torch.device | str = "cpu",
        block: Block = LLAMA,
        both_ways: bool = False,
    ) -> None:
        """``real``, bool ``[batch, sequence]``, is false for padding. ``modality``, int ``[batch, sequence]``, says of
        the visual tokens in which turn the tower sees them: images before videos. ``answered`` rows at the end are the
        beginning of an answer. ``block`` is what the decoder's layers are.
        ``both_ways``: visual tokens side by side see each other."""
        self.visual, self.past, self.is_plain_prefill = visual.cpu(), past, is_plain_prefill
        self.end = self.visual.shape[1] - answered
        self._modality = torch.zeros_like(self.visual, dtype=torch.int64) if modality is None else modality.cpu()
        self.device, self.block = torch.device(device), block
        self.both_ways = both_ways
        self.lent: dict[str, Any] = {}
        self.made: Any = None
        real = torch.ones_like(self.visual) if real is None else real.cpu()
        self.is_padded = not bool(real.all())
        self.visual = self.visual & real
        self.text = tuple(row.nonzero().flatten() for row in ~self.visual & real)
        self.alive = tuple(row.nonzero().flatten() for row in self.visual)
        self.counts = tuple(map(len, self.alive))
        self.first = self.alive
        self.kept: tuple[Tensor, ...] | None = None
        self.buffers = Buffers()
        self.stream = Stream()
        self._rotary: Tensor | None = None
        self._turns: dict[Rows, Turn] = {}
        self.chosen: dict[Choice, tuple[Tensor, ...]] = {}
        self._shared: dict[Any, Any] = {}  # row sets, calls and masks, until fewer tokens are alive
        self._of_choices: dict[Any, Any] = {}  # those of this layer alone

    @property
    def _memory(self) -> dict[Any, Any]:
        return self._of_choices if self.chosen else self._shared

    @property
    def is_untouched(self) -> bool:
        """Whether no row is padding, none was dropped, and no cache holds fewer keys than there are tokens: a layer in
        which nothing is planned is then the stock one."""
        return self.is_plain_prefill and not self.is_padded and self.alive is self.first and not self.chosen

    @property
    def before(self) -> tuple[Tensor, ...]:
        """Of each prompt, its text rows before the first visual token that it came with; none of a prompt without one,
        and of later turns."""
        before: tuple[Tensor, ...] = self.once("before", lambda: self.split(self.text)[0])
        return before

    def split(self, text: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of each prompt, those of its rows ``text`` that are before the image as in :attr:`before`, and the others."""
        starts = [int(visual[0]) if len(visual) and not self.past else 0 for visual in self.first]
        both = [(rows[rows < start], rows[rows >= start]) for rows, start in zip(text, starts, strict=True)]
        return tuple(rows for rows, _ in both), tuple(rows for _, rows in both)

    @property
    def length(self) -> int:
        return self.visual.shape[1]

    @property
    def last(self) -> tuple[int, ...]:
        """Of each prompt, its last row that takes part: of a prompt that ends in an image, the last visual row that is
        not dropped, as in the papers' codes, which take dropped rows out of the sequence."""
        last: tuple[int, ...] = self.once("last", lambda: self._last(self.alive))
        return last

    def _last(self, visual: tuple[Tensor, ...]) -> tuple[int, ...]:
        """The prompt's last row among text and ``visual`` rows; -1 where there is none."""
        both = (torch.cat(rows) for rows in zip(self.text, visual, strict=True))
        return tuple(int(rows[rows < self.end].max()) if (rows < self.end).any() else -1 for rows in both)

    @property
    def end_in_text(self) -> bool:
        """Whether every prompt's last row is text, so that no visual row is needed after the last layer."""
        last_rows = self._last(self.first)
        return all(len(text) and int(text[-1]) == last for text, last in zip(self.text, last_rows, strict=True))

    def reads_visual(self, kept: int | Tensor) -> bool:
        """Whether a visual row is among those whose logits are ``kept``, as in :func:`kept_rows`."""
        rows = self.visual[:, -kept:] if isinstance(kept, int) else self.visual & kept_rows(kept, self.visual.shape)
        return bool(rows.any())

    def read_only(self, kept: int | Tensor) -> None:
        """Of the last layer no states of text are read but of rows that are ``kept``, as in :func:`kept_rows`.

        Rows that are kept in one prompt are in all: so prompts that are alike stay so, and are no more work.
        """
        rows = kept_rows(kept, self.visual.shape).any(0)
        self.kept = tuple(text[rows[text]] for text in self.text)

    def split_scores(self, scores: Tensor) -> tuple[Tensor, ...]:
        """Of each prompt, its share of ``scores``, which are one for each visual token of the call, in the order in
        which the tower sees them: by modality, and within one in reading order."""
        order = self._modality[self.visual].argsort(stable=True).to(scores.device)
        return torch.empty_like(scores).index_copy(0, order, scores).split(list(self.counts))

    def keep(self, alive: tuple[Tensor, ...]) -> None:
        """From here on only these visual rows are alive."""
        self.alive = alive
        self._shared, self._turns, self.made = {}, {}, None

    def move(self, device: torch.device) -> None:
        """Row sets are of tensors on ``device`` from here on."""
        if device != self.device:
            self.device, self._shared, self._of_choices = device, {}, {}

    def choose(self, choice: Choice, rows: tuple[Tensor, ...]) -> None:
        """The visual rows that ``choice`` chooses in the layer about to run."""
        self.chosen[choice] = rows
        self._of_choices = {}  # whether prompts have the same rows may have changed

    def clear_choices(self) -> None:
        """After the layer: its choices are not the next one's."""
        self.chosen, self._of_choices, self._turns = {}, {}, {}

    @property
    def live(self) -> Rows:
        """Text and living visual tokens."""
        return self.rows(LIVE)

    def rows(self, wanted: RowSet) -> Rows:
        """A layer's set of rows, in this call."""
        if wanted not in self._memory:
            choice = wanted.choice
            visual = self.chosen[choice] if choice is not None else self.alive if wanted.visual == "all" else None
            text = {"none": None, "kept": self.kept, "all": self.text}[wanted.text]
            text = text if text is None or wanted.before else self.split(text)[1]
            given = [rows for rows in (text, visual) if rows is not None]
            differ = range(len(self.text)) if self._packed else range(1)
            none = torch.zeros(0, dtype=torch.int64)
            joined = [torch.cat([none, *(rows[b] for rows in given)]).sort().values for b in differ]
            joined += joined[:1] * (len(self.text) - len(joined))
            self._memory[wanted] = Rows(tuple(joined), self.length, self._packed, self.device)
        return self._memory[wanted]

    @property
    def _packed(self) -> bool:
        """Prompts differ in some row set of this layer, so all its compact tensors are packed."""
        if len(self.text) == 1:
            return False
        if "packed" not in self._memory:
            sets = (self.text, self.alive, self.split(self.text)[0], *self.chosen.values())
            self._memory["packed"] = not all(torch.equal(rows[0], other) for rows in sets for other in rows[1:])
        return self._memory["packed"]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` makes, made once: layers with the same rows share calls and masks."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def within(self, rows: Rows, outer: Rows) -> Rows:
        """``rows`` as rows of ``outer``'s compact tensors."""
        found: Rows = self.once(("within", rows, outer), lambda: rows.within(outer))
        return found

    def turn_of(self, rows: Rows, rotary: Rotary) -> Turn:
        """The rotary embedding of ``rows``, of what ``rotary`` holds of whole sequences; made once for all layers."""
        cos, sin = rotary
        if self._rotary is not cos:  # under a device map each device has its own
            self._rotary, self._turns = cos, {}
        found = self._turns.get(rows)
        if found is None:
            found = self._turns[rows] = Turn(rows.gather(cos), rows.gather(sin))
        return found

    def is_one_call(self, query: Rows, key: Rows) -> bool:
        """See :func:`lookless.runtime.calls.is_one_call`."""
        one: bool = self.once(("one call", query, key), lambda: is_one_call(query, key))
        return one

    @property
    def every_position(self) -> Tensor:
        """``[1, sequence]``"""
        every: Tensor = self.once("every position", lambda: torch.arange(self.length, device=self.device)[None])
        return every

    def is_complete(self, rows: Rows) -> bool:
        """Whether ``rows`` lack nothing but padding: then the cache is the stock model's."""
        sizes = zip(rows.prompts, self.text, self.counts, strict=True)
        complete: bool = self.once(("complete", rows), lambda: all(len(r) == len(t) + c for r, t, c in sizes))
        return complete

    def sink_values(self, rows: Rows, value: Tensor) -> Tensor:
        """``value`` of ``rows`` with every visual token's replaced by the first visual one's of its prompt."""
        value, at = value.clone(), 0
        for b in range(len(rows.prompts)):
            mine = rows.prompts[b]
            visual = self.visual[b, mine].nonzero().flatten().to(value.device)
            if len(visual):
                if rows.packed:
                    value[0, at + visual] = value[0, at + visual[0]].clone()
                else:
                    value[b, visual] = value[b, visual[0]].clone()
            at += len(mine)
        return value


def prompts_of(located: Located, given: Mapping[str, Any], kept: int | Tensor = 0) -> Prompts | None:
    """The prompts of one call of the model, from its own arguments; None if nothing in it is visual.

    Where the logits of so many last rows are ``kept``, and all are text, the first of them is the prompt's end, and the
    others are the beginning of its answer: assisted decoding prefills a prompt and a draft after it.

    Raises:
        ModelError: the call gives embeddings in place of ids, which do not say which tokens are visual.
    """
    ids, cache = given.get("input_ids"), given.get("past_key_values")
    if ids is None:
        if given.get("inputs_embeds") is not None and given["inputs_embeds"].shape[1] == 1:
            return None  # a decode step
        raise ModelError(
            "a plan needs input_ids to know which tokens are visual, and this call has inputs_embeds only: "
            "pass input_ids with pixel_values."
        )
    new = ids.shape[1]
    if new == 1 and not any(_has(given.get(name)) for name in ("pixel_values", "pixel_values_videos", FEATURES)):
        return None
    visual = located.visual(ids)
    past = 0 if cache is None else int(cache.get_seq_length())
    if not visual.any():
        return None
    real, is_plain = _real_rows(given, past, visual.shape)
    answered = kept - 1 if isinstance(kept, int) and kept > 1 and not visual[:, -kept:].any() else 0
    return Prompts(
        visual,
        real,
        past=past,
        is_plain_prefill=is_plain and past == 0,
        answered=answered,
        modality=located.modality(ids),
        device=visual.device,
        block=located.block,
        both_ways=located.block.types is not None and given.get(located.block.types) is not None,
    )


def kept_rows(kept: int | Tensor, shape: torch.Size) -> Tensor:
    """The rows whose logits a call of ``shape [batch, sequence]`` returns, bool of that shape on the CPU.

    ``kept`` is transformers' ``logits_to_keep``: the last so many rows, 0 for all; or their numbers, of all prompts or
    of each; or a mask.
    """
    rows = torch.zeros(shape, dtype=torch.bool)
    if isinstance(kept, int):
        rows[:, -kept:] = True
        return rows
    kept = torch.as_tensor(kept).cpu()
    if kept.ndim < 2:
        rows[:, kept] = True
    elif kept.dtype == torch.bool:
        rows |= kept
    else:
        rows.scatter_(1, kept % shape[1], True)
    return rows


def _has(features: Any) -> bool:
    """Whether a call brings these: pixels, or by modality what the tower made of them."""
    return any(v is not None for v in features.values()) if isinstance(features, Mapping) else features is not None


def is_packed(given: Mapping[str, Any]) -> bool:
    """Whether positions restart within a row, which without a mask means several sequences to transformers."""
    positions = given.get("position_ids")
    if positions is not None and positions.ndim == 3 and len(positions) == 4:
        positions = positions[0]  # of M-RoPE's four, those that count tokens
    if positions is None or positions.ndim != 2:
        return False
    return find_packed_sequence_indices(positions) is not None


def _real_rows(given: Mapping[str, Any], past: int, shape: torch.Size) -> tuple[Tensor | None, bool]:
    """Which rows of a call are no padding, bool ``[batch, new]``, None for all; and whether attention is causal among
    them."""
    mask = given.get("attention_mask")
    mask = mask.get("full_attention") if isinstance(mask, Mapping) else mask
    if mask is None:
        return None, not is_packed(given)
    if mask.ndim == 2:
        return mask[:, -shape[1] :].bool(), True
    return _rows_of_mask(mask, past, shape)


def _rows_of_mask(mask: Tensor, past: int, shape: torch.Size) -> tuple[Tensor, bool]:
    """Which rows a mask ``[batch or 1, heads or 1, new, sequence]`` makes real, bool ``[batch, new]``; the others
    neither read nor are read, and are padding. And whether it says only that each reads the real ones up to itself."""
    batch, new = shape
    is_open = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    is_free = mask if mask.dtype == torch.bool else mask == 0
    own = is_open[..., past : past + new]
    real = own.any(1).any(1) | is_open.any(1).any(-1)
    causal = (real[:, None, :] & torch.ones_like(own[0, 0]).tril())[:, None]
    ignored = ~real[:, None, :, None]
    is_plain = all(((m[..., past : past + new] == causal) | ignored).all() for m in (is_open, is_free))
    return real.expand(batch, -1), is_plain
