"""A promise on the answers that a plan loses, tested on questions that chose nothing; and two results compared.

The public names are listed in ``__init__.pyi``; each is imported when it is first used.
"""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
