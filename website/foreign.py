"""What a page would make a browser load from another machine."""

from __future__ import annotations

import re

_LOADED = re.compile(r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')


def foreign(html: str) -> list[str]:
    """Tags of scripts, styles, images and frames with an address of another machine. Links are for people to follow."""
    return _LOADED.findall(html)
