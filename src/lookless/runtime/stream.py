"""The residual stream's living rows on their way from one layer to the next."""

from __future__ import annotations

from torch import Tensor

from .rows import Rows


class Stream:
    """A compact copy of the living rows beside the whole stream, so that no layer gathers them again.

    A layer hands on the whole stream, for hooks and callers to read. The copy is good only while that very tensor comes
    back, and is not written into.
    """

    def __init__(self) -> None:
        self._left: tuple[Tensor, int, Rows, Tensor] | None = None  # whole, its version, rows, compact

    def enter(self, x: Tensor, rows: Rows) -> tuple[Tensor, bool]:
        """The compact ``rows`` of ``x [batch, sequence, hidden]``, and whether the caller may write into them."""
        left, self._left = self._left, None
        if left is not None:
            whole, version, before, compact = left
            if whole is x and x._version == version and before.packed == rows.packed:
                if rows is before:
                    return compact, True
                inner = rows.within(before)
                return inner.gather(compact), not inner.is_view
        return rows.gather(x), not rows.is_view

    def leave(self, x: Tensor, rows: Rows, compact: Tensor, *, is_hooked: bool) -> Tensor:
        """``x`` with its ``rows`` replaced by ``compact``, which is kept unless a hook may change what is handed on."""
        whole = rows.scatter(x, compact)
        if not (rows.is_whole or is_hooked or whole.is_inference()):
            self._left = whole, whole._version, rows, compact
        return whole

    def release(self) -> None:
        """Drop the copy."""
        self._left = None
