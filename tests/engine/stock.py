"""The same in plain transformers: what a model answers under ``lookless.apply``, made to say given tokens."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import lookless
from prompts import Prompt


class Says(hf.LogitsProcessor):
    """Only the given token, step by step."""

    def __init__(self, tokens: list[int]) -> None:
        self.left = list(tokens)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        said = torch.full_like(scores, -torch.inf)
        said[:, self.left.pop(0)] = 0
        return said


class Reference:
    """A checkpoint in float32."""

    def __init__(self, folder: Path) -> None:
        self.model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = hf.AutoProcessor.from_pretrained(folder)
        self.geometry = lookless.Geometry.from_config(self.model.config)

    def inputs(self, prompt: Prompt) -> dict[str, Any]:
        films = prompt.films
        videos = {"videos": [frames for frames, _ in films], "video_metadata": [known for _, known in films]}
        videos["do_sample_frames"] = False
        return dict(
            self.processor(
                text=[prompt.text],
                images=prompt.pictures or None,
                return_tensors="pt",
                **(videos if films else {}),
            )
        )

    @torch.no_grad()
    def logprobs(self, prompt: Prompt, tokens: list[int], plan: lookless.Plan | None) -> tuple[list[int], torch.Tensor]:
        """Ids of the prompt, and float ``[tokens, vocabulary]``."""
        inputs = self.inputs(prompt)
        with lookless.apply(self.model, plan) if plan else nullcontext():
            out = self.model.generate(
                **inputs,
                max_new_tokens=len(tokens),
                do_sample=False,
                logits_processor=[Says(tokens)],
                output_logits=True,
                return_dict_in_generate=True,
            )
        assert out.sequences[0, -len(tokens) :].tolist() == tokens
        return inputs["input_ids"][0].tolist(), torch.cat(out.logits).float().log_softmax(-1)
