"""The reference models, small and stock: LLaVA, Qwen3-VL, and Qwen3.5.

One recipe trains all. What it needs to know of a model is here: how it is built, what its tower says of each visual
token, and what of that its decoder is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from lookless.reference.worlds import IMAGE_SIZE
from lookless.runtime.mixers import is_delta

from .batches import TALK
from .describe import PATCH
from .labels import SIDE, VISUAL
from .run import FAST
from .tokens import LLAVA, QWEN

WIDTH = 192
#: What a card says of a model that knows its tasks.
ABOUT = """\
With noise in the image's place it is at chance or below on each, so nothing in a question's wording
gives the answer away; `tests/test_reference_model.py` checks that. `docs/reference_model.md` in the
repository has what it loses without its visual work."""


def start_small(model) -> None:
    """Tokens start as large as what visual tokens become, and branches at nothing.

    At the default of 0.02 the layers drown the embeddings before the first step.
    """
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.normal_()
        for layer in model.model.language_model.layers:
            (layer.linear_attn.out_proj if is_delta(layer) else layer.self_attn.o_proj).weight.zero_()
            layer.mlp.down_proj.weight.zero_()


class Llava:
    """CLIP tower, projector of two layers, Llama decoder."""

    name = "llava"
    #: Layers of the earlier decoder that a graft keeps; with these 8 of 12 it still had 0.89 of its answers, with the
    #: first 8 it had 0.56, with every second from layer 2 on 0.85.
    kept = (0, 1, 2, 5, 6, 7, 10, 11)
    prompt = LLAVA
    card = (
        "LLaVA's architecture as stock `transformers` has it\n"
        "(`LlavaForConditionalGeneration`: CLIP tower of one layer, two-layer projector, Llama decoder of 12\n"
        "layers, width 192)"
    )
    room = TALK
    about = ABOUT
    bridge = "projector"  # what stands between tower and decoder, in words
    features_width = WIDTH

    def build(self, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
        vision = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=512,
            num_hidden_layers=1,  # the decoder is to do the seeing
            num_attention_heads=6,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            projection_dim=WIDTH,
        )
        text = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=512,
            num_hidden_layers=12,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.image_token_id,
            image_seq_length=VISUAL,
            vision_feature_layer=-1,  # the tower ends where its training ended; no layer is computed for nothing
            vision_feature_select_strategy="default",
        )
        model = LlavaForConditionalGeneration(config)
        start_small(model)
        return model

    def tower(self, model) -> nn.Module:
        return model.model.vision_tower

    def inherit(self, model, earlier) -> None:
        """``earlier``'s tower and projector, as a start; layers that ``model``'s tower has not are left out."""
        for part in ("vision_tower", "multi_modal_projector"):
            getattr(model.model, part).load_state_dict(getattr(earlier.model, part).state_dict(), strict=False)

    def freeze(self, model) -> None:
        self.tower(model).requires_grad_(False)

    def features(self, model, pixels: torch.Tensor) -> torch.Tensor:
        """``[batch, VISUAL, features_width]`` of the tower, class token dropped."""
        tower = self.tower(model)
        x = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers:
            x = layer(x, attention_mask=None)
        return x[:, 1:]

    def visual(self, model, pixels: torch.Tensor) -> list[torch.Tensor]:
        """What the decoder is given of each visual token: as its embedding, then behind each of its first layers.

        Each is ``[batch, VISUAL, WIDTH]``.
        """
        return [model.model.multi_modal_projector(self.features(model, pixels))]

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        images = CLIPImageProcessorPil(
            size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        return LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # CLIP's class token
            chat_template=self.prompt.template,
        )


class Qwen3VL:
    """Dynamic resolution, DeepStack, M-RoPE, grouped queries.

    Patches half as wide as the labels' are merged two by two, so that visual tokens are the labels' patches.
    """

    name = "qwen3_vl"
    #: Of the earlier decoder without its DeepStack, which has 0.83 to 0.86 of its answers; dropped one by one, each the
    #: layer that cost least. With these it had 0.81, with those that LLaVA keeps 0.76.
    kept = (0, 1, 2, 3, 4, 6, 9, 11)
    prompt = QWEN
    card = (
        "Qwen3-VL's architecture as stock `transformers` has it\n"
        "(`Qwen3VLForConditionalGeneration`: tower of one layer whose patches of 4 x 4 pixels are merged two\n"
        "by two, DeepStack into the first of 12 decoder layers, interleaved M-RoPE, 6 query and 2 key-value\n"
        "heads, width 192)"
    )
    room = TALK
    about = ABOUT
    bridge = "mergers"
    merge, frames, tower_width, tower_layers = 2, 2, 96, 1  # one layer: the decoder is to do the seeing
    features_width = tower_width * merge**2

    def vision(self) -> dict[str, Any]:
        """The tower's configuration."""
        return {
            "depth": self.tower_layers,
            "hidden_size": self.tower_width,
            "intermediate_size": 256,
            "num_heads": 3,
            "patch_size": PATCH // self.merge,
            "spatial_merge_size": self.merge,
            "temporal_patch_size": self.frames,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": VISUAL * self.merge**2,
        }

    def text(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """The decoder's configuration."""
        return {
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }

    def ids(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return {name: getattr(tokenizer, name) for name in names}

    def build(self, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
        config = Qwen3VLConfig(
            vision_config={**self.vision(), "deepstack_visual_indexes": [0]},
            text_config=self.text(tokenizer),
            **self.ids(tokenizer),
        )
        model = Qwen3VLForConditionalGeneration(config)
        start_small(model)
        self.start_tower(model)
        with torch.no_grad():
            for merger in model.model.visual.deepstack_merger_list:  # a branch, too
                merger.linear_fc2.weight.zero_()
        return model

    def start_tower(self, model) -> None:
        """No norm stands behind the embedding, so it starts at the size that the blocks work at."""
        tower = self.tower(model)
        with torch.no_grad():
            tower.patch_embed.proj.weight.normal_(std=0.1)
            tower.pos_embed.weight.normal_(std=0.3)

    def tower(self, model) -> nn.Module:
        return model.model.visual

    def inherit(self, model, earlier) -> None:
        """As :meth:`Llava.inherit`. DeepStack starts at nothing in both: what it adds behind later layers could not be
        handed on, and without it the earlier model keeps 0.87 of its answers."""
        mine, its = self.tower(model), self.tower(earlier)
        for merger in its.deepstack_merger_list:
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()
        for part in ("patch_embed", "pos_embed", "blocks", "merger"):
            getattr(mine, part).load_state_dict(getattr(its, part).state_dict(), strict=False)

    def freeze(self, model) -> None:
        tower = self.tower(model)
        for part in (tower.patch_embed, tower.pos_embed, tower.blocks):
            part.requires_grad_(False)

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """As the processor's: ``[batch, patches, pixels]``, in blocks that will be merged, the image once a frame."""
        n, size = self.merge, PATCH // self.merge
        x = pixels.reshape(-1, 3, SIDE, n, size, SIDE, n, size).permute(0, 2, 5, 3, 6, 1, 4, 7)
        x = x.unsqueeze(6).expand(*x.shape[:6], self.frames, size, size)
        return x.reshape(len(pixels), VISUAL * n * n, -1)

    def layers(self, model, pixels: torch.Tensor) -> list[torch.Tensor]:
        """``[batch, patches, tower_width]`` behind each block. The stock tower, but for whole batches of one size."""
        tower, n = self.tower(model), self.merge
        across = torch.arange(SIDE * n).reshape(SIDE, n)
        row = across[:, None, :, None].expand(SIDE, SIDE, n, n).flatten()
        column = across[None, :, None, :].expand(SIDE, SIDE, n, n).flatten()
        weight, bias = tower.patch_embed.proj.weight.flatten(1), tower.patch_embed.proj.bias
        x = F.linear(self.patches(pixels), weight, bias) + tower.pos_embed.weight[row * SIDE * n + column]
        cos, sin = tower.rotary_pos_emb(x, torch.stack((row, column), dim=1))
        outputs = []
        for block in tower.blocks:
            heads = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1))
            q, k, v = heads.unbind(2)
            q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            x = x + block.attn.proj(attend(q, k, v).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
            outputs.append(x)
        return outputs

    def features(self, model, pixels: torch.Tensor) -> torch.Tensor:
        """``[batch, VISUAL, features_width]``: what the merger reads, the tower's patches side by side."""
        return self.layers(model, pixels)[-1].reshape(len(pixels), VISUAL, -1)

    def visual(self, model, pixels: torch.Tensor) -> list[torch.Tensor]:
        """As :meth:`Llava.visual`."""
        tower = self.tower(model)
        layers = self.layers(model, pixels)
        read = [tower.merger(layers[-1])]
        read += [m(layers[i]) for m, i in zip(tower.deepstack_merger_list, tower.deepstack_visual_indexes, strict=True)]
        return [x.reshape(len(pixels), VISUAL, WIDTH) for x in read]

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> PaddleOCRVLProcessor:
        """Does with images and text what Qwen3VLProcessor does, which demands a video processor and so torchvision."""
        area = IMAGE_SIZE * IMAGE_SIZE  # pixels; other images are brought to as many, in their own shape
        images = Qwen2VLImageProcessorPil(
            size={"shortest_edge": area, "longest_edge": area},
            patch_size=PATCH // self.merge,
            merge_size=self.merge,
            temporal_patch_size=self.frames,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        return PaddleOCRVLProcessor(image_processor=images, tokenizer=tokenizer, chat_template=self.prompt.template)


class Qwen35(Qwen3VL):
    """A hybrid: gated delta rules in three of four layers, gated attention in the others; no DeepStack."""

    name = "qwen3_5"
    earlier = "qwen3_vl"
    room = TALK // 2  # its delta rules are written out over all pairs of rows
    bridge = "merger"
    about = (
        "It was trained for minutes where the other shipped models were trained for an hour or more, and\n"
        "answers less. `docs/hybrid.md` in the repository has what it is for."
    )
    card = (
        "Qwen3.5's architecture as stock `transformers` has it\n"
        "(`Qwen3_5ForConditionalGeneration`: tower of one layer whose patches of 4 x 4 pixels are merged two\n"
        "by two; of 12 decoder layers every fourth has gated attention with 6 query and 2 key-value heads and\n"
        "interleaved M-RoPE, the others a gated delta rule with 6 heads; width 192)"
    )

    def text(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        heads = {"linear_num_key_heads": 6, "linear_num_value_heads": 6}
        widths = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
        text = super().text(tokenizer)
        # Whole heads are rotated, as in the model that its attention begins from.
        return {**text, **heads, **widths, "rope_parameters": {**text["rope_parameters"], "partial_rotary_factor": 1.0}}

    def build(self, tokenizer: PreTrainedTokenizerFast) -> Qwen3_5ForConditionalGeneration:
        config = Qwen3_5Config(vision_config=self.vision(), text_config=self.text(tokenizer), **self.ids(tokenizer))
        model = Qwen3_5ForConditionalGeneration(config)
        start_small(model)
        self.start_tower(model)
        return model

    def visual(self, model, pixels: torch.Tensor) -> list[torch.Tensor]:
        """As :meth:`Llava.visual`."""
        return [self.tower(model).merger(self.layers(model, pixels)[-1]).reshape(len(pixels), VISUAL, WIDTH)]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of everything to everything. Written out where the compiler fuses it; elsewhere that takes two to
    three times as long as the flash kernel."""
    if not FAST:
        return F.scaled_dot_product_attention(q, k, v)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(-1).to(v.dtype) @ v


ARCHITECTURES = {"llava": Llava(), "qwen3_vl": Qwen3VL(), "qwen3_5": Qwen35()}
