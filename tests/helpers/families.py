"""Tiny random models of every family, and prompts for them without a processor.

A family is how its model is built and what an image or a video becomes in a prompt. How prompts are laid out, padded
and joined, and how a second turn follows a first, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

from helpers.models import IMAGE, PAD, TEXT, VISION, VISUAL, contrasted, tiny_llava, tiny_llava_next

VIDEO, START, END = 98, 97, 96  # placeholders of a video; what stands before and behind an image
SPECIAL = [IMAGE, VIDEO, START, END]  # a random model may say them: suppress them in `generate`
DEEPSTACK = 2  # decoder layers of the tiny Qwen3-VL behind which visual features are added

_PATCH, _MERGE = 4, 2  # Qwen: pixels along a patch, patches along a visual token
_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


@dataclass(frozen=True)
class Visual:
    """One image or video: its ids in the prompt, and the arguments that come with them, to be joined along dim 0."""

    ids: Tensor
    arguments: dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A tiny model and the prompts it takes.

    Attributes:
        build: a fresh model, the same each time; takes the attention implementation.
        visuals: ``"image"``, ``"wide"`` (another image, of another size) and perhaps ``"video"``.
        visual_ids: the placeholders that are visual tokens.
        mrope: positions are three-dimensional, and the model wants to know which tokens are which modality.
    """

    name: str
    build: Callable[..., Any]
    visuals: dict[str, Callable[[Generator], Visual]]
    visual_ids: tuple[int, ...]
    mrope: bool = False

    @property
    def kinds(self) -> list[str]:
        """The batches this family has."""
        return [
            name
            for name, prompts in PROMPTS.items()
            if {part for prompt in prompts for part in prompt if isinstance(part, str)} <= {*self.visuals}
        ]

    def batch(self, kind: str) -> dict[str, Tensor]:
        """The model's keyword arguments for one of :data:`PROMPTS`."""
        return self.arguments(*PROMPTS[kind], padding="right" if kind == "padded right" else "left")

    def arguments(self, *prompts: tuple[int | str, ...], padding: str = "left", seed: int = 0) -> dict[str, Tensor]:
        """The model's keyword arguments for prompts such as ``(4, "image", 3)``: a number is so many text tokens."""
        generator = torch.Generator().manual_seed(seed)
        rows, visuals = [], []
        for prompt in prompts:
            pieces = []
            for part in prompt:
                if isinstance(part, int):
                    pieces.append(_words(part, generator))
                else:
                    visuals.append(self.visuals[part](generator))
                    pieces.append(visuals[-1].ids)
            rows.append(torch.cat(pieces))
        ids, mask = _padded(rows, padding)
        arguments = {"input_ids": ids, "attention_mask": mask}
        if self.mrope:
            arguments["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        for key in dict.fromkeys(key for visual in visuals for key in visual.arguments):
            arguments[key] = _joined([visual.arguments[key] for visual in visuals if key in visual.arguments])
        return arguments

    def turns(self, model: Any, *second: int | str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Arguments of two calls over one cache, ``(5, "image", 7)`` and ``second`` behind it, and of both as one call.

        With M-RoPE the second call has to be told its positions, those of the whole conversation cut to the chunk. The
        stock model by itself makes one for every key and fails, or, without a mask, counts on through an image as if
        it were text. What it remembers for decoding (``rope_deltas``) stays the first turn's.
        """
        first, chunk = self.arguments((5, "image", 7)), self.arguments(second, seed=1)
        per_token = ("input_ids", "attention_mask", "mm_token_type_ids")
        whole = {k: torch.cat((first[k], chunk[k]), -1) for k in per_token if k in first}
        for key in dict.fromkeys([*first, *chunk]):
            if key not in whole:
                whole[key] = _joined([turn[key] for turn in (first, chunk) if key in turn])
        chunk = {**chunk, "attention_mask": whole["attention_mask"]}
        if self.mrope:
            grids = {k: whole[k] for k in (*per_token, "image_grid_thw", "video_grid_thw") if k in whole}
            positions, _ = model.model.get_rope_index(**grids)
            chunk["position_ids"] = positions[..., first["input_ids"].shape[1] :]
        return first, chunk, whole


#: name -> the prompts of a batch
PROMPTS: dict[str, list[tuple[int | str, ...]]] = {
    "one image": [(5, "image", 7)],
    "two images": [(4, "image", 3, "wide", 6)],
    "batch alike": [(5, "image", 7), (5, "image", 7)],
    "padded left": [(5, "image", 9), (2, "wide", 4), (3, "image", 2, "wide", 5), (8,)],
    "padded right": [(5, "image", 9), (2, "wide", 4), (3, "image", 2, "wide", 5), (8,)],
    "video": [(4, "video", 6)],
    "image and video": [(3, "image", 2, "video", 5)],
}
#: what a second turn may be; to :meth:`Family.turns`
SECOND = {"image first": ("wide", 6), "image": (4, "wide", 5), "text": (5,)}


def _words(tokens: int, generator: Generator) -> Tensor:
    return torch.randint(1, END, (tokens,), generator=generator)


def _padded(rows: list[Tensor], padding: str) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[batch, longest]``."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if padding == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    return ids, mask


def _joined(tensors: list[Tensor]) -> Tensor:
    """Along dim 0; LLaVA-OneVision's ``[1, tiles, 3, height, width]`` padded to the most tiles, as by its processor."""
    if tensors[0].ndim == 5:
        most = max(t.shape[1] for t in tensors)
        tensors = [torch.cat((t, t.new_zeros(1, most - t.shape[1], *t.shape[2:])), 1) for t in tensors]
    return torch.cat(tensors)


def _finished(model: Any, attention: str) -> Any:
    """Norms start as ones and biases as zeros, whose confusion nobody would see: they become all different."""
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model = contrasted(model.eval())
    model.set_attn_implementation(attention)
    return model


# LLaVA and LLaVA-NeXT


def _llava_image(generator: Generator) -> Visual:
    return Visual(torch.full((VISUAL,), IMAGE), {"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)})


def _llava(attention: str = "sdpa") -> Any:
    return tiny_llava("clip-llama", attention)


def _llava_next(attention: str = "sdpa") -> Any:
    model = tiny_llava_next()
    model.set_attn_implementation(attention)
    return model


# LLaVA-OneVision


def _onevision(attention: str = "sdpa") -> LlavaOnevisionForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        text_config=Qwen2Config(**TEXT).to_dict(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[32, 32], [32, 64]],
    )
    return _finished(LlavaOnevisionForConditionalGeneration(config), attention)


def _tiled_image(tiles: int) -> Callable[[Generator], Visual]:
    """``tiles`` side by side: 16 tokens of the whole, 16 of each tile, and a newline for each of 4 rows.

    Of LLaVA-OneVision also beside another image in the same prompt, where its processor would send
    ``batch_num_images`` and no tiles: two images of different sizes are the harder case.
    """

    def image(generator: Generator) -> Visual:
        return Visual(
            torch.full((16 + 4 * (4 * tiles + 1),), IMAGE),
            {
                "pixel_values": torch.randn(1, 1 + tiles, 3, 32, 32, generator=generator),
                "image_sizes": torch.tensor([[32, 32 * tiles]]),
            },
        )

    return image


def _onevision_video(generator: Generator) -> Visual:
    """Two frames, pooled to 4 tokens each, and one newline."""
    return Visual(
        torch.full((2 * 4 + 1,), VIDEO), {"pixel_values_videos": torch.randn(1, 2, 3, 32, 32, generator=generator)}
    )


# Qwen-VL


def _mrope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **more}


_QWEN_TEXT = {**TEXT, "bos_token_id": None, "eos_token_id": None}  # the defaults are outside the vocabulary
_QWEN_VISION = {"num_heads": 2, "patch_size": _PATCH, "spatial_merge_size": _MERGE, "temporal_patch_size": 2}


def _qwen2(attention: str = "sdpa") -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={**_QWEN_TEXT, "rope_parameters": _mrope(2, 3, 3)},
        vision_config={**_QWEN_VISION, "depth": 1, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64},
        **_IDS,
    )
    return _finished(Qwen2VLForConditionalGeneration(config), attention)


def _qwen2_5(attention: str = "sdpa") -> Qwen2_5_VLForConditionalGeneration:
    """A window of the tower is 2 x 2 visual tokens; its second block sees the whole image."""
    torch.manual_seed(0)
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    config = Qwen2_5_VLConfig(
        text_config={**_QWEN_TEXT, "rope_parameters": _mrope(2, 3, 3)},
        vision_config={
            **_QWEN_VISION,
            **tower,
            "window_size": 2 * _MERGE * _PATCH,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 4,
        },
        **_IDS,
    )
    return _finished(Qwen2_5_VLForConditionalGeneration(config), attention)


def _qwen3(attention: str = "sdpa") -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(0)
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    config = Qwen3VLConfig(
        text_config={**_QWEN_TEXT, "head_dim": 16, "rope_parameters": _mrope(4, 2, 2, mrope_interleaved=True)},
        vision_config={
            **_QWEN_VISION,
            **tower,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": list(range(DEEPSTACK)),
        },
        **_IDS,
    )
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():  # else what DeepStack adds is lost beside the residual stream
        for parameter in model.model.visual.deepstack_merger_list.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return _finished(model, attention)


def _qwen_visual(frames: int, height: int, width: int, *, video: bool) -> Callable[[Generator], Visual]:
    """``height`` x ``width`` visual tokens for each of ``frames``, between START and END."""

    def visual(generator: Generator) -> Visual:
        grid = torch.tensor([[frames, height * _MERGE, width * _MERGE]])
        pixels = torch.randn(int(grid.prod()), 3 * 2 * _PATCH**2, generator=generator)
        ids = torch.full((frames * height * width + 2,), VIDEO if video else IMAGE)
        ids[0], ids[-1] = START, END
        names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
        return Visual(ids, dict(zip(names, (pixels, grid), strict=True)))

    return visual


def _qwen2_5_video(generator: Generator) -> Visual:
    """As Qwen2-VL's, and how many seconds lie between two frames."""
    video = _qwen_visual(2, 2, 3, video=True)(generator)
    return Visual(video.ids, {**video.arguments, "second_per_grid_ts": torch.tensor([0.5])})


def _qwen3_video(generator: Generator) -> Visual:
    """Each frame is an image of its own in the prompt, behind its time as text; their pixels are one video's."""
    frames = [_qwen_visual(1, 2, 3, video=True)(generator) for _ in range(2)]
    ids = torch.cat([piece for frame in frames for piece in (_words(3, generator), frame.ids)])
    pixels = torch.cat([frame.arguments["pixel_values_videos"] for frame in frames])
    return Visual(ids, {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[2, 2 * _MERGE, 3 * _MERGE]])})


def _qwen_visuals(video: Callable[[Generator], Visual]) -> dict[str, Callable[[Generator], Visual]]:
    return {
        "image": _qwen_visual(1, 3, 4, video=False),
        "wide": _qwen_visual(1, 2, 5, video=False),
        "video": video,
    }


# InternVL


def _internvl(decoder: Any) -> Callable[..., InternVLForConditionalGeneration]:
    def build(attention: str = "sdpa") -> InternVLForConditionalGeneration:
        torch.manual_seed(0)
        config = InternVLConfig(
            vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            text_config=decoder.to_dict(),
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
        return _finished(InternVLForConditionalGeneration(config), attention)

    return build


def _internvl_image(tiles: int) -> Callable[[Generator], Visual]:
    """4 visual tokens a tile, all tiles between one START and END."""

    def image(generator: Generator) -> Visual:
        ids = torch.full((4 * tiles + 2,), IMAGE)
        ids[0], ids[-1] = START, END
        return Visual(ids, {"pixel_values": torch.randn(tiles, 3, 32, 32, generator=generator)})

    return image


_INTERNVL_IMAGES = {"image": _internvl_image(3), "wide": _internvl_image(4)}
_INTERNVL_DECODERS = {
    "qwen2": Qwen2Config(**TEXT),
    "qwen3": Qwen3Config(**TEXT, head_dim=16),
    "llama": LlamaConfig(**TEXT),
}

_ALL = [
    Family("llava", _llava, {"image": _llava_image, "wide": _llava_image}, (IMAGE,)),
    Family("llava_next", _llava_next, {"image": _tiled_image(1), "wide": _tiled_image(2)}, (IMAGE,)),
    Family(
        "llava_onevision",
        _onevision,
        {"image": _tiled_image(1), "wide": _tiled_image(2), "video": _onevision_video},
        (IMAGE, VIDEO),
    ),
    Family("qwen2_vl", _qwen2, _qwen_visuals(_qwen_visual(2, 2, 3, video=True)), (IMAGE, VIDEO), mrope=True),
    Family("qwen2_5_vl", _qwen2_5, _qwen_visuals(_qwen2_5_video), (IMAGE, VIDEO), mrope=True),
    Family("qwen3_vl", _qwen3, _qwen_visuals(_qwen3_video), (IMAGE, VIDEO), mrope=True),
    *(
        Family(f"internvl-{name}", _internvl(decoder), _INTERNVL_IMAGES, (IMAGE,))
        for name, decoder in _INTERNVL_DECODERS.items()
    ),
]
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


@cache
def model_of(family: str) -> Any:
    """One model of a family for every test that leaves it as it was."""
    return FAMILIES[family].build()
