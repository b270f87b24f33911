"""Tiny random models of each family, and prompts for them."""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

IMAGE, PAD, VOCABULARY = 99, 0, 100
VISUAL = 16  # visual tokens of one image of 32 pixels in patches of 8
LAYERS = 5

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}

#: decoder and tower of each variant of the LLaVA family
VARIANTS = {
    "clip-llama": (CLIPVisionConfig(**VISION, projection_dim=32), LlamaConfig(**TEXT), "default"),
    "clip-llama-mha": (
        CLIPVisionConfig(**VISION, projection_dim=32),
        LlamaConfig(**{**TEXT, "num_key_value_heads": 4}),
        "default",
    ),
    "clip-mistral": (
        CLIPVisionConfig(**VISION, projection_dim=32),
        MistralConfig(**TEXT, sliding_window=None),
        "default",
    ),
    "siglip-qwen2": (SiglipVisionConfig(**VISION), Qwen2Config(**TEXT), "full"),
}


def tiny_llava(variant: str = "clip-llama", attention: str = "sdpa") -> LlavaForConditionalGeneration:
    vision, text, strategy = VARIANTS[variant]
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=IMAGE,
        image_seq_length=VISUAL,
        vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
    )
    model = contrasted(LlavaForConditionalGeneration(config).eval())
    model.set_attn_implementation(attention)
    return model


def contrasted(model):
    # Random weights of the default 0.02 give attention without contrast; larger ones make every operator count.
    with torch.no_grad():
        for parameter in model.model.get_decoder().parameters():
            if parameter.ndim >= 2:  # three of the experts of a mixture
                parameter.mul_(5)
    return model


def tiny_llava_next() -> LlavaNextForConditionalGeneration:
    """Any-resolution tiling: an image of 32 x 32 is 16 tokens of the whole, 16 of one tile, and a newline per row."""
    vision, text, strategy = VARIANTS["clip-mistral"]
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[32, 32], [32, 64]],
        vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
    )
    return contrasted(LlavaNextForConditionalGeneration(config).eval())


def next_batch() -> dict[str, torch.Tensor]:
    """Two prompts of different length, with images of different resolution: 16 + 20 and 16 + 36 visual tokens."""
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(1, IMAGE, (30,), generator=generator)
    first = torch.cat((text[:5], torch.full((36,), IMAGE), text[5:12]))
    second = torch.cat((text[12:15], torch.full((52,), IMAGE), text[15:19]))
    ids = torch.full((2, max(len(first), len(second))), PAD)
    ids[0, -len(first) :], ids[1, -len(second) :] = first, second
    tiles = torch.randn(2, 3, 3, 32, 32, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "pixel_values": tiles,
        "image_sizes": torch.tensor([[32, 32], [32, 64]]),
    }


def prompt(*parts: int | str, seed: int = 0) -> torch.Tensor:
    """Ids ``[tokens]``: a number is so many text tokens, ``"image"`` an image's placeholders."""
    generator = torch.Generator().manual_seed(seed)
    pieces = [
        torch.full((VISUAL,), IMAGE) if part == "image" else torch.randint(1, IMAGE, (int(part),), generator=generator)
        for part in parts
    ]
    return torch.cat(pieces)


def batch(*prompts: torch.Tensor, padding: str = "left", seed: int = 1) -> dict[str, torch.Tensor]:
    """Prompts of any lengths as the model's arguments, with a random image for each run of placeholders."""
    longest = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), longest), PAD)
    mask = torch.zeros_like(ids)
    for i, p in enumerate(prompts):
        at = slice(longest - len(p), longest) if padding == "left" else slice(0, len(p))
        ids[i, at], mask[i, at] = p, 1
    images = sum(int((p == IMAGE).sum()) // VISUAL for p in prompts)
    arguments = {"input_ids": ids, "attention_mask": mask}
    if images:
        generator = torch.Generator().manual_seed(seed)
        arguments["pixel_values"] = torch.randn(images, 3, 32, 32, generator=generator)
    return arguments


#: name -> a batch; every shape of input the runtime has to get right
BATCHES = {
    "one image": lambda: batch(prompt(5, "image", 7)),
    "image first": lambda: batch(prompt("image", 7)),
    "image last": lambda: batch(prompt(6, "image")),
    "two images": lambda: batch(prompt(4, "image", 3, "image", 6)),
    "two images touching": lambda: batch(prompt(4, "image", "image", 6)),
    "batch alike": lambda: batch(prompt(5, "image", 7), prompt(5, "image", 7, seed=3)),
    "padded left": lambda: batch(
        prompt(5, "image", 9),
        prompt(2, "image", 4, seed=2),
        prompt(3, "image", 2, "image", 5, seed=3),
        prompt(8, seed=4),
    ),
    "padded right": lambda: batch(
        prompt(5, "image", 9),
        prompt(2, "image", 4, seed=2),
        prompt(3, "image", 2, "image", 5, seed=3),
        prompt(8, seed=4),
        padding="right",
    ),
    "same length, other places": lambda: batch(prompt(5, "image", 7), prompt(8, "image", 4, seed=2)),
}
