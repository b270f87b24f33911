"""Time and memory: the stock model and plans, alternating, in transformers and in vLLM.

The public names are listed in ``__init__.pyi``; each is imported when it is first used.
"""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
