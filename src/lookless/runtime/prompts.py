"""The prompts of one call of the model: which tokens are text, visual or padding, and which visual ones are alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cells import Choice
from ..layer_plan import LIVE, RowSet
from .inplace import Buffers
from .rows import Rows, is_one_call


class Stream:
    """The residual stream's living rows on their way from one layer to the next, so that no layer takes them out again
    that the layer before has put back.

    A layer hands on the whole stream, which anybody may look at; here is a compact copy besides. It is good only while
    that very tensor comes back, and nobody has written into it.
    """

    def __init__(self) -> None:
        self._left: tuple[Tensor, int, Rows, Tensor] | None = None  # whole, its version, rows, compact

    def enter(self, x: Tensor, rows: Rows) -> tuple[Tensor, bool]:
        """The compact ``rows`` of ``x [batch, sequence, hidden]``, and whether they are the caller's to write into."""
        left, self._left = self._left, None
        if left is not None:
            whole, version, before, compact = left
            if whole is x and x._version == version and before.packed == rows.packed:
                if rows is before:
                    return compact, True
                inner = rows.within(before)
                return inner.take(compact), not inner.is_view
        return rows.take(x), not rows.is_view

    def leave(self, x: Tensor, rows: Rows, compact: Tensor, *, is_watched: bool) -> Tensor:
        """``x`` with its ``rows`` replaced by ``compact``, which is remembered unless somebody may change what is
        handed on before it comes back."""
        whole = rows.put(x, compact)
        if not (rows.is_whole or is_watched or whole.is_inference()):
            self._left = whole, whole._version, rows, compact
        return whole

    def release(self) -> None:
        """Forget what was handed on."""
        self._left = None


class Prompts:
    """State of one forward pass: it begins with every visual token alive, and keep cells make it fewer.

    Attributes:
        visual: bool ``[batch, sequence]`` on the CPU, true where the token is a visual placeholder.
        text, alive: of each prompt, its text rows and its living visual rows, ascending, int64 on the CPU.
        counts: how many visual tokens each prompt came with.
        past: tokens of earlier turns in the cache.
        is_cold: the prompts begin the sequence and no mask but padding is asked for, so attention is causal over rows.
        is_padded: some rows are padding.
        modality: of the constructor, int ``[batch, sequence]``: of the visual tokens, in which turn the tower sees
            them; images before videos.
        buffers: memory that all layers share.
        end: where prompts end, and the beginning of an answer may follow: the first words of a draft.
    """

    def __init__(
        self,
        visual: Tensor,
        real: Tensor | None,
        *,
        past: int = 0,
        is_cold: bool = True,
        answered: int = 0,
        modality: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.visual, self.past, self.is_cold = visual.cpu(), past, is_cold
        self.end = self.visual.shape[1] - answered
        self._modality = torch.zeros_like(self.visual, dtype=torch.int64) if modality is None else modality.cpu()
        self.device = torch.device(device)
        real = torch.ones_like(self.visual) if real is None else real.cpu()
        self.is_padded = not bool(real.all())
        self.visual = self.visual & real
        self.text = tuple(row.nonzero().flatten() for row in ~self.visual & real)
        self.alive = tuple(row.nonzero().flatten() for row in self.visual)
        self.counts = tuple(map(len, self.alive))
        self.first = self.alive  # as they came
        self.buffers = Buffers()
        self.stream = Stream()
        self._rotary: Tensor | None = None
        self._turned: dict[int, tuple[Rows, Any]] = {}  # by id of the row set, which is held, or another might get it
        self.chosen: dict[Choice, tuple[Tensor, ...]] = {}  # in this layer
        self._lasting: dict[Any, Any] = {}  # row sets and calls, good until fewer tokens are alive
        self._of_choices: dict[Any, Any] = {}  # those of this layer alone

    @property
    def _memory(self) -> dict[Any, Any]:
        return self._of_choices if self.chosen else self._lasting

    @property
    def is_untouched(self) -> bool:
        """No row is padding, none was dropped, and no cache may hold fewer keys than there are tokens: a layer in which
        nothing is planned is the stock one."""
        return self.is_cold and not self.is_padded and self.alive is self.first and not self.chosen

    @property
    def length(self) -> int:
        return self.visual.shape[1]

    @property
    def last(self) -> tuple[int, ...]:
        """Of each prompt, its last row that takes part: of a prompt that ends in an image, the last visual row that is
        not dropped, as in the papers' codes, which take dropped rows out of the sequence."""
        last: tuple[int, ...] = self.remembered("last", lambda: self._last(self.alive))
        return last

    def _last(self, visual: tuple[Tensor, ...]) -> tuple[int, ...]:
        """The prompt's last row among text and ``visual`` rows; -1 where there is none."""
        both = (torch.cat(rows) for rows in zip(self.text, visual, strict=True))
        return tuple(int(rows[rows < self.end].max()) if (rows < self.end).any() else -1 for rows in both)

    @property
    def end_in_text(self) -> bool:
        """Whether every prompt's last row is text, so that nobody reads a visual row behind the last layer."""
        last_rows = self._last(self.first)
        return all(len(text) and int(text[-1]) == last for text, last in zip(self.text, last_rows, strict=True))

    def reads_visual(self, kept: int | Tensor) -> bool:
        """Whether a visual row is among those whose logits are ``kept``, as transformers' ``logits_to_keep`` says: the
        last so many rows, 0 for all; or their numbers, of all prompts or of each; or a mask."""
        if isinstance(kept, int):
            rows = self.visual[:, -kept:] if kept else self.visual
        elif kept.ndim == 1:
            rows = self.visual[:, kept.cpu()]
        elif kept.dtype == torch.bool:
            rows = self.visual[kept.cpu()]
        else:
            rows = self.visual.gather(1, kept.cpu())
        return bool(rows.any())

    def dealt(self, scores: Tensor) -> tuple[Tensor, ...]:
        """Of each prompt, its share of ``scores``, one for each visual token of the call in the order in which the
        tower sees them: by modality, and within one in reading order."""
        order = self._modality[self.visual].argsort(stable=True).to(scores.device)
        return torch.empty_like(scores).index_copy(0, order, scores).split(list(self.counts))

    def keep(self, alive: tuple[Tensor, ...]) -> None:
        """From here on only these visual rows are alive."""
        self.alive = alive
        self._lasting, self._turned = {}, {}

    def move(self, device: torch.device) -> None:
        """Row sets are of tensors on ``device`` from here on."""
        if device != self.device:
            self.device, self._lasting, self._of_choices = device, {}, {}

    def choose(self, choice: Choice, rows: tuple[Tensor, ...]) -> None:
        """The visual rows that ``choice`` chooses in the layer about to run."""
        self.chosen[choice] = rows
        self._of_choices = {}  # whether prompts are alike may have changed

    def forget_choices(self) -> None:
        self.chosen, self._of_choices, self._turned = {}, {}, {}

    @property
    def live(self) -> Rows:
        """Text and living visual tokens."""
        return self.rows(LIVE)

    def rows(self, wanted: RowSet) -> Rows:
        """A layer's set of rows, in this call."""
        if wanted not in self._memory:
            choice = wanted.choice
            visual = self.chosen[choice] if choice is not None else self.alive if wanted.visual == "all" else None
            given = [rows for rows in (self.text if wanted.text else None, visual) if rows is not None]
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
            sets = (self.text, self.alive, *self.chosen.values())
            self._memory["packed"] = not all(torch.equal(rows[0], other) for rows in sets for other in rows[1:])
        return self._memory["packed"]

    def remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` made the first time; layers with the same rows share calls and masks."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def within(self, rows: Rows, outer: Rows) -> Rows:
        """``rows`` as rows of ``outer``'s compact tensors."""
        found: Rows = self.remembered(("within", id(rows), id(outer)), lambda: rows.within(outer))
        return found

    def turned(self, rows: Rows, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of ``rows`` the cos and sin that ``rotary`` holds of whole sequences; taken once for all layers."""
        cos, _ = rotary
        if self._rotary is not cos:  # under a device map each device has its own
            self._rotary, self._turned = cos, {}
        found = self._turned.get(id(rows))
        if found is None:
            found = self._turned[id(rows)] = (rows, tuple(rows.take(t) for t in rotary))
        return found[1]

    def is_one_call(self, query: Rows, key: Rows) -> bool:
        """See :func:`lookless.runtime.rows.is_one_call`."""
        one: bool = self.remembered(("one call", id(query), id(key)), lambda: is_one_call(query, key))
        return one

    @property
    def every_place(self) -> Tensor:
        """``[1, sequence]``"""
        place: Tensor = self.remembered("every place", lambda: torch.arange(self.length, device=self.device)[None])
        return place

    def is_complete(self, rows: Rows) -> bool:
        """Whether ``rows`` lack nothing but padding: then the cache is the stock model's."""
        return all(len(r) == len(t) + c for r, t, c in zip(rows.prompts, self.text, self.counts, strict=True))

    def sunk(self, rows: Rows, value: Tensor) -> Tensor:
        """``value`` of ``rows`` with every visual token's replaced by the first visual one's of its prompt."""
        value, at = value.clone(), 0
        for b in range(len(rows.prompts)):
            mine = rows.prompts[b]
            places = self.visual[b, mine].nonzero().flatten().to(value.device)
            if len(places):
                if rows.packed:
                    value[0, at + places] = value[0, at + places[0]].clone()
                else:
                    value[b, places] = value[b, places[0]].clone()
            at += len(mine)
        return value
