"""Tiny random checkpoints of every family that vLLM serves, with processor and tokenizer, made without a network.

Heads are as wide as vLLM's CPU kernels want them, and random weights are so large that whatever is skipped is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LAYERS = 5
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>", "<start>", "<end>")
#: As published: vLLM writes those of Qwen3-VL out.
QWEN = (*SPECIAL[:3], "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
PAD, BOS, EOS, IMAGE, VIDEO, START, END = range(len(SPECIAL))
VOCABULARY = len(SPECIAL) + 256
#: tokens that a model may answer with; a random one would also say that here is an image
WORDS = list(range(len(SPECIAL), VOCABULARY))

_SIDE, _PATCH = 56, 14  # pixels along an image of LLaVA's and InternVL's, and along a patch
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


@dataclass(frozen=True)
class Checkpoint:
    """A tiny model and how prompts for it are written.

    Attributes:
        build: model and processor, the same each time.
        image, video: what stands for an image in a prompt, and for a video; None where the family takes no videos.
        sizes: width and height of a plain image and of a wide one.
        special: the words of the special tokens.
    """

    name: str
    build: Callable[[Any], tuple[Any, Any]]
    image: str = "<image>"
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((_SIDE, _SIDE), (2 * _SIDE, _SIDE))
    video: str | None = None
    special: tuple[str, ...] = SPECIAL

    def save(self, folder: Path) -> Path:
        torch.manual_seed(0)
        model, processor = self.build(tokenizer(self.image, self.special))
        model = seen(model.eval())
        model.generation_config = hf.GenerationConfig(pad_token_id=PAD, eos_token_id=EOS)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return as_published(folder)


def tokenizer(image: str, special: tuple[str, ...]) -> hf.PreTrainedTokenizerFast:
    """A token for each byte, and the ``special`` ones; ``image`` is how a prompt says that here is one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    plain = Tokenizer(models.BPE(vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    template = (
        "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}"
        f"{{% else %}}{image}{{% endif %}}{{% endfor %}}{{% endif %}}\n{{% endfor %}}"
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": special[IMAGE],
            "video_token": special[VIDEO],
            "vision_start_token": special[START],
            "vision_end_token": special[END],
            "start_image_token": special[START],
            "end_image_token": special[END],
            "context_image_token": special[IMAGE],
        },
        chat_template=template,
        padding_side="left",
        model_max_length=1024,
    )


def seen(model: Any) -> Any:
    """Weights under which every operator of every layer counts: those of Transformers start too small for that."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            elif "embed_tokens" in name:
                parameter.normal_()
            elif "visual" in name or "vision" in name or "projector" in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                sharp = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.normal_(std=sharp * parameter.shape[1] ** -0.5)
    return model


def as_published(folder: Path) -> Path:
    """Weights as in published checkpoints: vLLM looks for CLIP's and SigLIP's below ``vision_model``, and takes
    experts' to be of inputs times outputs."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    tower = "vision_tower."
    if any(f"{tower}embeddings.patch_embedding." in name for name in weights):
        weights = {name.replace(tower, f"{tower}vision_model."): weight for name, weight in weights.items()}
    weights = {name: w.mT.contiguous() if ".mlp.experts." in name else w for name, w in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def _clip() -> dict[str, Any]:
    return hf.CLIPVisionConfig(**_TOWER, image_size=_SIDE, patch_size=_PATCH, projection_dim=64).to_dict()


def _llava(words: Any) -> tuple[Any, Any]:
    """16 visual tokens an image, whatever its size."""
    config = hf.LlavaConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_TEXT).to_dict(),
        image_token_index=IMAGE,
        image_seq_length=(_SIDE // _PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    size = {"height": _SIDE, "width": _SIDE}
    images = hf.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    processor = hf.LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _llava_next(words: Any) -> tuple[Any, Any]:
    """16 visual tokens of the whole, 16 of each of one or two tiles, and a newline for each row."""
    pinpoints = [[_SIDE, _SIDE], [_SIDE, 2 * _SIDE]]
    config = hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=hf.MistralConfig(**_TEXT, sliding_window=None).to_dict(),
        image_token_index=IMAGE,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}, image_grid_pinpoints=pinpoints
    )
    processor = hf.LlavaNextProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision(words: Any) -> tuple[Any, Any]:
    """As LLaVA-NeXT, with SigLIP; of a video 4 visual tokens a frame, and a newline."""
    pinpoints = [[_SIDE, _SIDE], [_SIDE, 2 * _SIDE]]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_TOWER, image_size=_SIDE, patch_size=_PATCH).to_dict(),
        text_config=hf.Qwen2Config(**_TEXT).to_dict(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    size = {"height": _SIDE, "width": _SIDE}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=words,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(_SIDE // _PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=words.chat_template,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _rope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **more}


def _pixels(patch: int) -> dict[str, Any]:
    """Of an image of 8 to 24 visual tokens."""
    token = (2 * patch) ** 2
    size = {"shortest_edge": 8 * token, "longest_edge": 24 * token}
    return {"size": size, "patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}


def _qwen2(words: Any) -> tuple[Any, Any]:
    config = hf.Qwen2VLConfig(
        text_config={**_TEXT, "rope_parameters": _rope(6, 5, 5)},
        vision_config={"depth": 2, "embed_dim": 64, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 128},
        tie_word_embeddings=False,
        **_IDS,
    )
    videos = hf.Qwen2VLVideoProcessor(**_pixels(14))
    processor = hf.Qwen2VLProcessor(hf.Qwen2VLImageProcessor(**_pixels(14)), words, videos, words.chat_template)
    return hf.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5(words: Any) -> tuple[Any, Any]:
    """A window of the tower is 2 x 2 visual tokens; its second block sees the whole image.

    No video here is longer than it is wide: behind one that is, vLLM counts positions from its last frame on, and
    transformers from its width on.
    """
    tower = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128, "num_heads": 2}
    config = hf.Qwen2_5_VLConfig(
        text_config={**_TEXT, "rope_parameters": _rope(6, 5, 5)},
        vision_config={**tower, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 1},
        tie_word_embeddings=False,
        **_IDS,
    )
    videos = hf.Qwen2VLVideoProcessor(**_pixels(14))
    processor = hf.Qwen2_5_VLProcessor(hf.Qwen2VLImageProcessor(**_pixels(14)), words, videos, words.chat_template)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3(words: Any) -> tuple[Any, Any]:
    """DeepStack adds visual features behind the first two layers."""
    tower = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128, "num_heads": 2}
    config = hf.Qwen3VLConfig(
        text_config={**_TEXT, "rope_parameters": _rope(6, 5, 5, mrope_interleaved=True)},
        vision_config={**tower, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=False,
        **_IDS,
    )
    half = [0.5] * 3  # as published: vLLM normalises videos as images
    images = hf.Qwen2VLImageProcessor(**_pixels(16), image_mean=half, image_std=half)
    videos = hf.Qwen3VLVideoProcessor(**_pixels(16))
    return hf.Qwen3VLForConditionalGeneration(config), hf.Qwen3VLProcessor(images, words, videos, words.chat_template)


def _qwen3_moe(words: Any) -> tuple[Any, Any]:
    """As Qwen3-VL, with a mixture of experts in all layers but one."""
    tower = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128, "num_heads": 2}
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "mlp_only_layers": [2]}
    mixture["norm_topk_prob"] = True  # as published, and read by vLLM alone
    config = hf.Qwen3VLMoeConfig(
        text_config={**_TEXT, **mixture, "rope_parameters": _rope(6, 5, 5, mrope_interleaved=True)},
        vision_config={**tower, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=False,
        **_IDS,
    )
    _, processor = _qwen3(words)
    return hf.Qwen3VLMoeForConditionalGeneration(config), processor


def _qwen3_5(words: Any) -> tuple[Any, Any]:
    """A gated delta rule in layers 0, 2 and 4, and attention with a gate, on half of a head's numbers, in 1 and 3."""
    tower = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128, "num_heads": 2}
    delta = {"key_head_dim": 64, "value_head_dim": 64, "num_key_heads": 2, "num_value_heads": 4, "conv_kernel_dim": 4}
    kinds = ["linear_attention", "full_attention"]
    config = hf.Qwen3_5Config(
        text_config={
            **_TEXT,
            **{f"linear_{name}": size for name, size in delta.items()},
            "layer_types": [kinds[layer % 2] for layer in range(LAYERS)],
            "rope_parameters": _rope(3, 3, 2, mrope_interleaved=True, partial_rotary_factor=0.5),
        },
        vision_config={**tower, "num_position_embeddings": 64},
        tie_word_embeddings=False,
        **_IDS,
    )
    _, processor = _qwen3(words)
    return hf.Qwen3_5ForConditionalGeneration(config), processor


def _internvl(words: Any) -> tuple[Any, Any]:
    """4 visual tokens a tile of up to three, and a fourth of the whole where there is more than one."""
    config = hf.InternVLConfig(
        vision_config={**_TOWER, "image_size": [_SIDE, _SIDE], "patch_size": [_PATCH, _PATCH]},
        text_config=hf.Qwen2Config(**_TEXT).to_dict(),
        image_token_id=IMAGE,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    size = {"height": _SIDE, "width": _SIDE}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=3),
        tokenizer=words,
        video_processor=hf.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=words.chat_template,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def of_qwen(name: str, build: Any, *sizes: tuple[int, int]) -> Checkpoint:
    image, video = (f"{QWEN[START]}{QWEN[shown]}{QWEN[END]}" for shown in (IMAGE, VIDEO))
    return Checkpoint(name, build, image, sizes, video, QWEN)


_ALL = [
    Checkpoint("llava", _llava),
    Checkpoint("llava_next", _llava_next),
    Checkpoint("llava_onevision", _llava_onevision, video="<video>"),
    of_qwen("qwen2_vl", _qwen2, (84, 112), (140, 84)),
    of_qwen("qwen2_5_vl", _qwen2_5, (84, 112), (140, 84)),
    of_qwen("qwen3_vl", _qwen3, (96, 128), (160, 96)),
    of_qwen("qwen3_vl_moe", _qwen3_moe, (96, 128), (160, 96)),
    Checkpoint("internvl", _internvl, video="<video>"),
]
#: Its gated delta rule runs on a CPU in bfloat16 alone.
QWEN3_5 = of_qwen("qwen3_5", _qwen3_5, (96, 128), (160, 96))
CHECKPOINTS: dict[str, Checkpoint] = {checkpoint.name: checkpoint for checkpoint in _ALL}
