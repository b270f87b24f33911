"""A model with its processor, by name; and samples turned into its inputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from . import reference
from .data import Sample
from .errors import ModelError, first_line
from .models import family_of, locate

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its processor, and where they came from."""

    model: nn.Module
    processor: Any
    name: str
    revision: str | None

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """``samples`` as one padded batch of the model's arguments, on its device; prompts end where it answers.

        Raises:
            ModelError: the processor has no chat template.
        """
        if self.processor.chat_template is None:
            raise ModelError(f"the processor of {self.name} has no chat template, so questions cannot be put to it.")
        texts = [self._prompt(sample) for sample in samples]
        images = [sample.opened() for sample in samples]
        batch = self.processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            return_tensors="pt",
            # Templates write the beginning-of-sequence token themselves where the tokenizer would add a second.
            add_special_tokens=not texts[0].startswith(self.processor.tokenizer.bos_token or "\0"),
        )
        parameter = next(self.model.parameters())
        return dict(batch.to(parameter.device, dtype=parameter.dtype))

    def _prompt(self, sample: Sample) -> str:
        content = [{"type": "image"}] * len(sample.images) + [{"type": "text", "text": sample.question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return str(text)

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int) -> list[str]:
        """The model's greedy answers, stripped.

        Raises:
            ModelError: the logits of a step have no finite maximum; the message names the question.
        """
        inputs = self.inputs(samples)
        tokenizer, tops = self.processor.tokenizer, []

        def watch(_: Tensor, logits: Tensor) -> Tensor:
            tops.append(logits.amax(-1))  # NaN if one is; looked at in the end, so that no step waits for the device
            return logits

        ids = self.model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=[watch],
        )
        for sample, each in zip(samples, torch.stack(tops, dim=1), strict=True):
            if not each.isfinite().all():
                raise ModelError(
                    f"{self.name} gives logits that are not finite (NaN or infinite) for {sample.question[:60]!r}: "
                    f"check its weights, or load it in bfloat16 or float32."
                )
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def load_model(name: str, *, dtype: str = "auto", device: str = "cpu", revision: str | None = None) -> Loaded:
    """``reference``, ``reference-qwen3-vl``, a local folder, or a hub id.

    Raises:
        ModelError: it is not there, cannot be read, or its family is not supported.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    where = str(reference.NAMES.get(name, name))
    if looks_local(where) and not (Path(where) / "config.json").is_file():
        raise ModelError(f"{where} is not a model's folder: it has no config.json.")
    import transformers

    if not sys.stderr.isatty():  # a bar is for eyes; in a log or a pipe it is noise
        transformers.utils.logging.disable_progress_bar()

    # The shipped models are stored in bfloat16 to be small, and run in float32, which every CPU does well.
    chosen = torch.float32 if name in reference.NAMES and dtype == "auto" else DTYPES[dtype]
    try:
        config = transformers.AutoConfig.from_pretrained(where, revision=revision)
        family_of(config)  # before gigabytes are read
        model = transformers.AutoModelForImageTextToText.from_pretrained(where, revision=revision, dtype=chosen)
        processor = transformers.AutoProcessor.from_pretrained(where, revision=revision)
        model = model.eval().to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError, SafetensorError) as problem:
        raise ModelError(f"{name} cannot be loaded: {first_line(problem)}.") from None
    locate(model)
    if getattr(processor, "tokenizer", None) is None:
        raise ModelError(f"{name} has no processor with a tokenizer and an image processor beside its weights.")
    processor.tokenizer.padding_side = "left"  # so that a batch of prompts ends, and is answered, in one column
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return Loaded(model, processor, name, getattr(config, "_commit_hash", None))


def looks_local(where: str) -> bool:
    """Whether ``where`` can only be a folder here: it exists, or it is no hub id (``name`` or ``owner/name``)."""
    path = Path(where)
    return path.exists() or path.is_absolute() or where.startswith((".", "~")) or len(path.parts) > 2
