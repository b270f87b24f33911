"""``lookless.lmms.classes.X`` is lmms-eval's chat class ``X`` with :class:`lookless.lmms.planned.Planned` before it.

Each is made when it is asked for, as importing one of lmms-eval's modules needs the packages of its model.
"""

from __future__ import annotations

from typing import Any

from .names import CLASSES
from .planned import Planned


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmms_eval.models import get_model

    stock = get_model(name)
    return type(name, (Planned, stock), {"__module__": __name__, "__doc__": stock.__doc__})
