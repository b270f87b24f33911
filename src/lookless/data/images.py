"""Images that are opened anew at each use, upright and with 8 bits a channel."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError, first_line
from ..files import check_file

#: Of an image file, as it lies on disk.
MOST_BYTES = 2**28


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, opened anew at each use.

    Attributes:
        path: of the file.
        context: how an error message about it begins: ``"data.jsonl, line 3: "``.
    """

    path: Path
    context: str = ""

    @property
    def key(self) -> str:
        """Two images with the same key are the same image."""
        return str(self.path.resolve())

    def open(self) -> Image.Image:
        """As :func:`load_image`.

        Raises:
            DataError: as there.
        """
        return load_image(self.path, self.context)


@dataclass(frozen=True)
class ImageCell:
    """An image in a table, read and decoded anew at each use.

    Attributes:
        read: the content of its file.
        context: how an error message about it begins: ``"val.parquet, row 3: "``.
    """

    read: Callable[[], bytes] = field(repr=False, compare=False)
    context: str = ""

    @cached_property
    def key(self) -> str:
        """Two images with the same key are the same image."""
        return hashlib.sha256(self.read()).hexdigest()

    def open(self) -> Image.Image:
        """The RGB image.

        Raises:
            DataError: as :func:`load_image`.
        """
        return _decoded(io.BytesIO(self.read()), f"{self.context}the image")


@dataclass(frozen=True)
class ImageCall:
    """An image that another library hands out, anew at each use.

    Attributes:
        call: gives it.
        context: how an error message about it begins.
    """

    call: Callable[[], Image.Image] = field(repr=False, compare=False)
    context: str = ""

    @cached_property
    def key(self) -> str:
        """Two images with the same key are the same image."""
        image = self.open()
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

    def open(self) -> Image.Image:
        """The RGB image, as the library gives it.

        Raises:
            DataError: it gives none.
        """
        try:
            return self.call().convert("RGB")
        except Exception as problem:
            raise DataError(f"{self.context}the image cannot be read ({first_line(problem)}).") from problem


#: An image that is not in memory.
Stored = ImageFile | ImageCell | ImageCall


def load_image(path: Path, context: str = "") -> Image.Image:
    """The RGB image at ``path``, fully decoded, turned as its EXIF says, 16 bits a channel scaled to 8.

    Args:
        context: how an error message begins: ``"data.jsonl, line 3: "``.

    Raises:
        DataError: there is no such file, it is not an image, truncated or too large, or its pixels have no known range.
    """
    return _decoded(path, f"{context}the image {path}")


def _decoded(source: Path | io.BytesIO, what: str) -> Image.Image:
    try:
        if isinstance(source, Path):
            check_file(source)
        size = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())
        if size > MOST_BYTES:
            raise ValueError(f"it has {size / 2**20:,.0f} MiB, and at most {MOST_BYTES / 2**20:,.0f} are read")
        with _bounded(), Image.open(source) as image:
            image.load()
            return _eight_bits(_upright(image)).convert("RGB")
    except FileNotFoundError as problem:
        raise DataError(f"{what} does not exist.") from problem
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as problem:
        raise DataError(
            f"{what} cannot be read: it has more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels, and would "
            f"fill the memory: make it smaller."
        ) from problem
    except Exception as problem:  # Pillow has many decoders, each with errors of its own
        said = str(getattr(problem, "strerror", None) or problem)
        said = said.partition(" <_io.")[0]  # Pillow names a file in memory by its address
        reason = " ".join(said.split()).rstrip(".") or type(problem).__name__
        raise DataError(f"{what} cannot be read ({reason}): it is damaged or not an image.") from problem


@contextmanager
def _bounded() -> Iterator[None]:
    """Pillow reads a size first, and warns of one that a small file may claim to fill the memory: here that is an
    error, before a pixel is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _upright(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF says; unchanged if the EXIF cannot be read, as image viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF with good pixels is common, and its parser raises many kinds of errors
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """``image`` with at most 8 bits a channel, scaled if it has more: Pillow's own conversion clips at 255."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels of mode {image.mode} have no known range, save it with 8 or 16 bits a pixel")
    return Image.fromarray((pixels.astype(np.float64) / 257).round().astype(np.uint8), "L")
