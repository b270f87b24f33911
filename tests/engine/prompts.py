"""What engines are asked: plain data, so that two processes that share no library version agree on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lookless.reference import question


class Prompt(NamedTuple):
    """``images`` are (width, height, seed) of noise, or (task, index) of the reference tasks; ``videos`` are (frames,
    width, height, seed); ``text`` places them."""

    text: str
    images: Sequence[tuple[Any, ...]] = ()
    videos: Sequence[tuple[int, ...]] = ()

    @property
    def pictures(self) -> list[Image.Image]:
        return [question(i[0], "test", i[1])[0] if isinstance(i[0], str) else noise(*i) for i in self.images]

    @property
    def films(self) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Frames ``[frames, height, width, 3]`` of each video, and what is known of it."""
        return [film(*video) for video in self.videos]


def film(frames: int, width: int, height: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Two frames a second, each another noise."""
    pictures = np.stack([np.asarray(noise(width, height, 100 * seed + frame)) for frame in range(frames)])
    indices = {"total_num_frames": frames, "frames_indices": list(range(frames))}
    return pictures, {"fps": 2.0, "duration": frames / 2, "width": width, "height": height, **indices}


def noise(width: int, height: int, seed: int) -> Image.Image:
    """Coarse, so that no resizing averages it away."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def rounds(checkpoint: Any) -> list[list[Prompt]]:
    """Two rounds: every shape a request can have, then other questions behind the same images and video."""
    i, (plain, wide) = checkpoint.image, checkpoint.sizes
    long = "<s>There is a picture here, and before it a text that fills a block of the cache by itself: "
    one, two, three = (*plain, 1), (*wide, 2), (*plain, 3)
    first = [
        Prompt(f"<s>A picture: {i} what is in it?", [one]),
        Prompt(f"<s>Two of them, {i} and {i}, which?", [one, two]),
        Prompt("<s>No picture at all.", []),
        Prompt(f"{i}first", [two]),
        Prompt(f"<s>these touch {i}{i} now", [three, one]),
        Prompt(f"{long}{i} so?", [three]),
        Prompt(f"<s>and at the end {i}", [one]),
    ]
    second = [
        Prompt(f"<s>A picture: {i} and how many?", [one]),
        Prompt(f"<s>Two of them, {i} and {i}, what differs?", [one, two]),
        Prompt(f"<s>Two of them, {i} and {i}, which?", [one, three]),  # another second image: not the same prefix
        Prompt(f"{long}{i} and then?", [three]),
        Prompt(f"{long}nothing", []),
    ]
    if checkpoint.video:
        v, some = checkpoint.video, (4, *plain, 4)
        first += [
            Prompt(f"<s>{v} what happens?", [], [some]),
            Prompt(f"<s>A film {v} and then a picture {i} so?", [one], [(6, *plain, 5)]),
        ]
        second += [Prompt(f"<s>{v} what happens then?", [], [some])]
    return [first, second]
