"""The samples behind a page's questions, each looked up once, and small copies of their images."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from PIL import Image

from ..data import AS_IS, Reading, Sample
from ..errors import DataError

#: Pixels of the longer side of an image, and bytes of one.
SIDE, MOST_BYTES = 224, 40_000


@dataclass
class Album:
    """The samples of each task, by :attr:`lookless.Sample.hash`.

    Attributes:
        data: where to load them: a file, or ``reference:TASK``.
        reading: how they are read.
    """

    data: Mapping[str, str]
    reading: Reading = AS_IS
    _found: dict[str, dict[str, Sample]] = field(default_factory=dict, init=False)

    def samples(self, task: str, wanted: Collection[str]) -> dict[str, Sample]:
        """Those that are there of the ``wanted``.

        Raises:
            DataError: where the task's samples are is not known, or they cannot be read.
        """
        where, found = self.data.get(task), self._found.setdefault(task, {})
        if where is None:
            raise DataError("where the images are is not known: give --data.")
        left = {*wanted} - {*found}
        # A reference task is endless: so many are drawn.
        endless = where == "reference" or where.startswith("reference:")
        for limit in (100, 600) if endless else (None,):
            for sample in self.reading.load(where, limit=limit) if left else ():
                if sample.hash in left:
                    found[sample.hash] = sample
                    left.discard(sample.hash)
        return {one: found[one] for one in wanted if one in found}


def small(sample: Sample) -> list[str]:
    """Data URIs of the images of ``sample``, none if one of them cannot be opened or made small enough."""
    try:
        uris = [uri(image) for image in sample.opened()]
    except DataError:
        return []
    return [] if None in uris else [one for one in uris if one]


def uri(image: Image.Image) -> str | None:
    """``image`` as a small PNG or JPEG, whichever takes fewer bytes; None if both take too many."""
    copy = image.convert("RGB")
    copy.thumbnail((SIDE, SIDE))
    options: tuple[tuple[str, dict[str, object]], ...] = (("png", {"optimize": True}), ("jpeg", {"quality": 80}))
    written = {kind: _encoded(copy, kind, **settings) for kind, settings in options}
    kind = min(written, key=lambda k: len(written[k]))
    if len(written[kind]) > MOST_BYTES:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(written[kind]).decode()}"


def _encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()
