"""Samples: images, a question and the right answers, from the reference tasks, a file, or a table.

Images are opened when they are needed and not kept, so a thousand photos take no more memory than one. The public names
are listed in ``__init__.pyi``; each is imported when it is first used.
"""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
