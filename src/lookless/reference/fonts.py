"""Fonts of signs and tables: those that matplotlib ships, so that every machine draws the same pixels."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont


@lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font file ``name`` of matplotlib, at ``size`` pixels."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


def text_size(text: str, name: str, size: int) -> tuple[int, int]:
    """Width and height in pixels of ``text`` in font ``name``: its advance width, ascent plus descent."""
    face = font(name, size)
    ascent, descent = face.getmetrics()
    return math.ceil(face.getlength(text)), ascent + descent
