"""What lmms-eval calls our models and tasks."""

from __future__ import annotations

PREFIX = "lookless_"
#: The chat classes of lmms-eval that run on transformers and know an architecture of :mod:`lookless.runtime.families`.
#: A checkpoint that the runtime does not support is refused by name.
CLASSES = ("internvl_hf", "llava_hf", "qwen2_5_vl", "qwen3_5", "qwen3_vl")
