"""Where in a picture each visual token lies: grids of cells, as each family's processor and tower lay them out.

The picture is the sample's own, before the processor resizes, pads, crops or tiles it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isqrt
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data import Sample
from ..loading import Loaded
from ..runtime.families import locate

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Grid(BaseModel):
    """Visual tokens that lie as cells over a picture, row by row.

    Attributes:
        image: which of the prompt's pictures.
        level: grids of one level cover the picture once: 0 is the whole of it or its overview, 1 are its tiles.
        first: number of the first cell's token among the prompt's visual tokens.
        rows, columns: of cells.
        step: tokens from the beginning of a row to that of the next; more than ``columns`` where a newline follows.
        box: left, top, right and bottom of what the cells cover, as shares of the picture; beyond 0 and 1 is padding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: int = Field(ge=0)
    level: int = Field(default=0, ge=0, le=1)
    first: int = Field(ge=0)
    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    step: int = Field(gt=0)
    box: Box = WHOLE


@dataclass(frozen=True)
class _Picture:
    """One picture in a prompt: its size, how many tokens it became, and what the processor made of it.

    Attributes:
        number: among the prompt's pictures.
        first: number of its first token among the prompt's visual tokens.
    """

    number: int
    size: tuple[int, int]
    first: int
    tokens: int
    inputs: Mapping[str, Any]
    processor: Any
    config: Any

    def grid(self, rows: int, columns: int, *, after: int = 0, step: int | None = None, **more: Any) -> Grid:
        """A grid whose first token is ``after`` others of the picture."""
        return Grid(
            image=self.number, first=self.first + after, rows=rows, columns=columns, step=step or columns, **more
        )


def grids_of(loaded: Loaded, sample: Sample, inputs: Mapping[str, Any]) -> tuple[Grid, ...]:
    """The grids of all pictures of one prompt; none where the tokens do not lie as the family's do.

    Args:
        inputs: of ``loaded.inputs([sample])``.
    """
    located = locate(loaded.model)
    lay = LAYOUTS.get(located.geometry.model_type)
    runs, images = _runs(located.visual(inputs["input_ids"][0])), sample.opened()
    if lay is None or len(runs) != len(images):
        return ()
    config, processor = located.inner.config, getattr(loaded.processor, "image_processor", None)
    pictures, first = [], 0
    for number, (tokens, image) in enumerate(zip(runs, images, strict=True)):
        pictures.append(_Picture(number, image.size, first, tokens, inputs, processor, config))
        first += tokens
    found = [lay(picture) for picture in pictures]
    return tuple(grid for grids in found for grid in grids) if all(found) else ()


def _runs(visual: Tensor) -> list[int]:
    """Lengths of the runs of visual tokens."""
    return [len([*run]) for is_visual, run in groupby(visual.tolist()) if is_visual]


def _square(picture: _Picture) -> tuple[Grid, ...]:
    """LLaVA-1.5: one square, of which the processor may have cropped the sides."""
    side = isqrt(picture.tokens)
    if side * side != picture.tokens:
        return ()
    return (picture.grid(side, side, box=_seen(picture.processor, picture.size)),)


def _seen(processor: Any, size: tuple[int, int]) -> Box:
    """What of a picture of ``size`` (width, height) is left after padding to a square, or cropping its middle."""
    if getattr(processor, "do_pad", False):
        longest = max(size)
        return _middle(longest / size[0], longest / size[1])
    if not getattr(processor, "do_center_crop", False):
        return WHOLE
    crop, resize = processor.crop_size, processor.size
    shortest = _of(resize, "shortest_edge")
    scaled = (
        [side * shortest / min(size) for side in size] if shortest else [_of(resize, n) for n in ("width", "height")]
    )
    return _middle(_of(crop, "width") / scaled[0], _of(crop, "height") / scaled[1])


def _of(size: Any, name: str) -> Any:
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)


def _middle(width: float, height: float) -> Box:
    """A box of these shares around the middle."""
    return (0.5 - width / 2, 0.5 - height / 2, 0.5 + width / 2, 0.5 + height / 2)


def _merged(picture: _Picture) -> tuple[Grid, ...]:
    """Qwen-VL: the picture in its own shape; a token is a square of patches."""
    _, *patches = picture.inputs["image_grid_thw"][picture.number].tolist()
    rows, columns = (side // picture.config.vision_config.spatial_merge_size for side in patches)
    return (picture.grid(rows, columns),) if rows * columns == picture.tokens else ()


def _tiled(picture: _Picture) -> tuple[Grid, ...]:
    """InternVL: tiles over the stretched picture, then a thumbnail of all of it; or the thumbnail alone."""
    each = picture.config.image_seq_length
    side, tiles = isqrt(each), picture.tokens // each - 1
    if side * side != each or tiles < 0 or picture.tokens % each:
        return ()
    overview = picture.grid(side, side, after=tiles * each)
    if not tiles:
        return (overview,)
    across, down = _tiles(tiles, picture.size)
    boxes = [(c / across, r / down, (c + 1) / across, (r + 1) / down) for r in range(down) for c in range(across)]
    return overview, *(picture.grid(side, side, after=i * each, level=1, box=box) for i, box in enumerate(boxes))


def _tiles(count: int, size: tuple[int, int]) -> tuple[int, int]:
    """Tiles across and down, of all ways to lay ``count``: the processor takes that nearest to the picture's shape."""
    ways = [(across, count // across) for across in range(1, count + 1) if count % across == 0]
    return min(ways, key=lambda way: abs(way[0] / way[1] - size[0] / size[1]))


def _unpadded(picture: _Picture) -> tuple[Grid, ...]:
    """LLaVA-NeXT and LLaVA-OneVision: a square overview; then tiles without their padding, a newline after each row."""
    side = picture.config.vision_config.image_size // picture.config.vision_config.patch_size
    overview, rest = picture.grid(side, side), picture.tokens - side * side
    if rest in (0, 1):  # one of several pictures of LLaVA-OneVision has no tiles, and a newline
        return (overview,)
    width, height = picture.size
    ways = [(rows, rest // rows - 1) for rows in range(1, rest // 2 + 1) if rest % rows == 0]
    # In the picture's own shape, up to rounding: LLaVA-OneVision rounds again where it shrinks more than nine tiles.
    slack = 1.01 if rest < 8 * side * side else 2
    fit = [(r, c) for r, c in ways if min(abs(r - c * height / width), abs(c - r * width / height)) <= slack]
    if len(fit) != 1:
        return ()
    [(rows, columns)] = fit
    return overview, picture.grid(rows, columns, after=side * side, step=columns + 1, level=1)


#: How a picture's tokens lie, by model_type.
LAYOUTS: dict[str, Callable[[_Picture], Sequence[Grid]]] = {
    "llava": _square,
    "llava_next": _unpadded,
    "llava_onevision": _unpadded,
    "qwen2_vl": _merged,
    "qwen2_5_vl": _merged,
    "qwen3_vl": _merged,
    "internvl": _tiled,
}
