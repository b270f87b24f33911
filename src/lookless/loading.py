"""Load a model with its processor, and turn samples into its inputs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import reference
from .checkpoint import check_weights
from .data import Sample, Samples
from .errors import DataError, LooklessError, ModelError, first_line, is_out_of_memory
from .processes import everywhere, own_device
from .progress import track
from .runtime.families import family_of, locate

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Code that comes with a model is never run; without this word transformers may ask at the terminal whether to.
SAFE: dict[str, Any] = {"trust_remote_code": False}
SOME = 256  #: numbers of a weight that its model is told by


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with its processor.

    Attributes:
        model, processor: of transformers; prompts are padded on the left.
        name: as given to :func:`load_model`.
        revision: the hub commit; None for a local folder.
    """

    model: nn.Module
    processor: Any
    name: str
    revision: str | None

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """``samples`` as one padded batch of the model's arguments, on its device and in its dtype.

        Padding is on the left, so that the last column is the last token of every prompt.

        Raises:
            ModelError: the processor has no chat template.
            DataError: an image is missing, damaged or refused by the processor, or a question contains the image
                token; the message names the sample.
        """
        if self.processor.chat_template is None:
            raise ModelError(f"the processor of {self.name} has no chat template, so questions cannot be put to it.")
        for sample in samples:
            self._check_words(sample)
        try:
            batch = self._processed(samples)
        except DataError:
            raise
        except Exception as problem:  # a processor raises anything, and does not say for which sample of a batch
            for sample in samples:
                self._check_processed(sample)
            if is_out_of_memory(problem):
                raise
            raise DataError(
                f"the processor of {self.name} takes each of {len(samples)} prompts, from {_named(samples[0])} on, and "
                f"not all in one batch ({first_line(problem)}): give a smaller batch."
            ) from problem
        parameter = next(self.model.parameters())
        return dict(batch.to(parameter.device, dtype=parameter.dtype))

    def _processed(self, samples: Sequence[Sample]) -> Any:
        texts = [self._prompt(sample) for sample in samples]
        images = [sample.opened() for sample in samples]
        return self.processor(
            text=texts,
            images=images if any(images) else None,
            **self._videos(samples),
            padding=True,
            return_tensors="pt",
            # Templates that write the beginning-of-sequence token themselves would otherwise get a second one.
            add_special_tokens=not texts[0].startswith(self.processor.tokenizer.bos_token or "\0"),
        )

    def _videos(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The processor's arguments for the videos of ``samples``: all frames, as those that are given are a choice.

        Raises:
            DataError: this model takes no video.
        """
        with_video = [sample for sample in samples if sample.videos]
        if not with_video:
            return {}
        if getattr(self.processor, "video_token", None) is None:
            raise DataError(f"{_named(with_video[0])}: {self.name} takes no video: give its frames as images.")
        videos = [(video, sample.fps) for sample in with_video for video in sample.opened_videos()]
        times = [{"total_num_frames": len(v), "fps": fps, "frames_indices": [*range(len(v))]} for v, fps in videos]
        return {"videos": [video for video, _ in videos], "video_metadata": times, "do_sample_frames": False}

    def fitting(self, samples: Samples, progress: bool = True) -> Samples:
        """``samples`` without those that :meth:`inputs` refuses; what is wrong with each is noted in its ``bad``.

        ``progress`` shows a bar.

        Raises:
            DataError: none is left.
        """
        items, bad = [], [*samples.bad]
        for sample in track(samples.items, f"checking {samples.name}", progress):
            try:
                self._check_words(sample)
                self._check_processed(sample)
                items.append(sample)
            except DataError as problem:
                bad.append(str(problem))
        if not items:
            raise DataError(f"{self.name} can be asked none of the samples of {samples.name}; the first: {bad[0]}")
        return replace(samples, items=tuple(items), bad=tuple(bad))

    def _check_words(self, sample: Sample) -> None:
        """Raises: DataError: a text of the prompt cannot be encoded, or contains the image token."""
        words = "".join(turn.text for turn in sample.conversation())
        if any("\ud800" <= letter <= "\udfff" for letter in words):
            raise DataError(f"{_named(sample)}: the question holds half a surrogate pair, which is no text.")
        for token in self._placeholders:
            if token in words:
                raise DataError(
                    f"{_named(sample)}: the question holds {token!r}, which {self.name} takes for an image: write it "
                    f"another way."
                )

    def _check_processed(self, sample: Sample) -> None:
        """Raises: DataError: the processor refuses this sample alone."""
        try:
            self._processed([sample])
        except DataError:
            raise
        except Exception as problem:
            reason = " ".join(str(problem).split()).rstrip(".") or type(problem).__name__
            raise DataError(f"{_named(sample)}: the processor of {self.name} refuses it: {reason}.") from problem

    @cached_property
    def _placeholders(self) -> tuple[str, ...]:
        """The placeholder tokens of images and videos in a prompt."""
        known = self.processor.tokenizer.convert_ids_to_tokens(list(locate(self.model).visual_ids))
        known += [getattr(self.processor, name, None) for name in ("image_token", "video_token")]
        return tuple(dict.fromkeys(token for token in known if token))

    def _prompt(self, sample: Sample) -> str:
        messages = [turn.message() for turn in sample.conversation()]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of what its answers depend on: of each weight some numbers, the processor, and the versions.

        Training changes nearly every number, so a few of each weight tell models apart without reading them all.
        """
        digest = hashlib.sha256(repr((self.processor, self.processor.chat_template)).encode())
        for package in ("torch", "transformers"):
            digest.update(importlib.metadata.version(package).encode())
        for name, weight in self.model.state_dict().items():
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {weight.device.type}".encode())
            if type(weight) is Tensor and not weight.is_meta:  # neither offloaded nor of a quantizer's own class
                some = weight.flatten()[:: max(1, weight.numel() // SOME)].float().cpu()
                digest.update(some.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int) -> list[str]:
        """The model's greedy answers, without outer blanks, in the order of ``samples``.

        Each has at most ``max_new_tokens`` tokens.

        Raises:
            ModelError: the logits of a step are not finite; the message names the question.
        """
        inputs = self.inputs(samples)
        tokenizer, tops = self.processor.tokenizer, []

        def watch(_: Tensor, logits: Tensor) -> Tensor:
            tops.append(logits.amax(-1))  # NaN if any is; checked at the end, so that no step waits for the device
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
                which = f"{sample.where} ({sample.question[:60]!r})" if sample.where else repr(sample.question[:60])
                raise ModelError(
                    f"{self.name} gives logits that are not finite (NaN or infinite) for {which}: "
                    f"check its weights, or load it in bfloat16 or float32."
                )
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def load_model(name: str, *, dtype: str = "auto", device: str = "cpu", revision: str | None = None) -> Loaded:
    """Load a model and its processor.

    Images need no torchvision. Videos do, and are refused without it.

    Args:
        name: ``reference``, ``reference-qwen3-vl``, ``reference-qwen3-5``, a local folder, or a hub id.
        dtype: ``auto`` (as the checkpoint says; float32 for the shipped models), or one of :data:`DTYPES`.
        device: of torch: ``cpu``, ``cuda``, ``cuda:1``, ...
        revision: branch, tag or commit of a hub model.

    Raises:
        ModelError: there is no such model or device, it cannot be read, its family is not supported, or its checkpoint
            lacks weights, has some of another shape, or some that the model has no place for.
    """
    return everywhere(_load, name, dtype, device, revision)


def _load(name: str, dtype: str, device: str, revision: str | None) -> Loaded:
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    device = own_device(device)
    where = str(reference.SHIPPED.get(name, name))
    check_folder(where)
    check_device(device)
    # The shipped models are stored in bfloat16 to be small, and run in float32, which every CPU does well.
    chosen = torch.float32 if name in reference.SHIPPED and dtype == "auto" else DTYPES[dtype]
    with _no_bars_but_on_a_terminal():
        config, processor, model = _read(name, where, revision, chosen, device)
    locate(model)
    if getattr(processor, "tokenizer", None) is None:
        raise ModelError(f"{name} has no processor with a tokenizer and an image processor beside its weights.")
    processor.tokenizer.padding_side = "left"  # so that every prompt's last token is in the last column
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return Loaded(model, processor, name, getattr(config, "_commit_hash", None))


@contextmanager
def _no_bars_but_on_a_terminal() -> Iterator[None]:
    """Without the progress bars of transformers and the hub where standard error is a log or a pipe.

    They are switches of the whole process, so they are put back.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    if sys.stderr.isatty():
        yield
        return
    shown, hub_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the hub's variable forbids them
            if shown:
                logging.enable_progress_bar()
            (enable_progress_bars if hub_shown else disable_progress_bars)()


def _read(name: str, where: str, revision: str | None, dtype: Any, device: str) -> tuple[Any, Any, nn.Module]:
    """The configuration, the processor and the model, on ``device``.

    Raises:
        ModelError: one cannot be read, the family is not supported, or the weights are not the model's.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(where, revision=revision, **SAFE)
        family_of(config)  # before gigabytes are read
        processor = _processor(config, where, revision)
        model, found = transformers.AutoModelForImageTextToText.from_pretrained(
            where,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,  # a pickle runs what its writer likes
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **SAFE,
        )
        check_weights(name, {path for path, _ in model.named_modules() if path}, found)
        return config, processor, model.eval().to(device)
    except LooklessError:
        raise
    except Exception as problem:  # any content of a folder, and any error of transformers and the hub
        said = " ".join(str(problem).split()).rstrip(".")
        reason = f"{type(problem).__name__}: {said}" if said else type(problem).__name__
        raise ModelError(f"{name} cannot be loaded: {reason}.") from problem


def _processor(config: Any, where: str, revision: str | None) -> Any:
    """The processor of a model; without torchvision, for images alone.

    The image processors of transformers need only Pillow, and the video processors need torchvision: without it,
    transformers refuses a processor that has both.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    kind = PROCESSOR_MAPPING[type(config)]
    if is_torchvision_available() or "video_processor" not in kind.get_attributes():
        return transformers.AutoProcessor.from_pretrained(where, revision=revision, **SAFE)
    return images_only(kind).from_pretrained(where, revision=revision)


def images_only(kind: Any) -> Any:
    """A subclass of the processor class ``kind`` without the video processor."""

    class ImagesOnly(kind):  # type: ignore[misc, valid-type]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

        def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **more: Any) -> Any:
            if videos is not None:
                raise ModelError("videos need torchvision, which is not installed: pip install torchvision.")
            return super().__call__(images=images, text=text, **more)

    ImagesOnly.__name__ = kind.__name__  # which is written into, and compared with, a processor's files
    return ImagesOnly


def _named(sample: Sample) -> str:
    return sample.where or f"the sample {sample.question[:60]!r}"


def check_device(name: str) -> None:
    """Raises: ModelError: torch does not know the device, does not find it here, or can compute nothing on it."""
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        raise ModelError(f"device {name!r} cannot be used: {first_line(problem)}.") from problem


def check_folder(where: str) -> None:
    """Raises: ModelError: ``where`` can only be a folder here, and holds no model."""
    if looks_local(where) and not (Path(where) / "config.json").is_file():
        raise ModelError(f"{where} is not a model's folder: it has no config.json.")
    for path in sorted(Path(where).iterdir()) if Path(where).is_dir() else ():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(f"{path} is a pipe or a device, and not a model's file: take it away.")


def looks_local(where: str) -> bool:
    """Whether ``where`` can only be a folder here: it exists, or it is no hub id (``name`` or ``owner/name``)."""
    path = Path(where)
    return path.exists() or path.is_absolute() or where.startswith((".", "~")) or len(path.parts) > 2
