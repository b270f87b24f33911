"""The tokenizer: byte-level BPE. Every word of the reference tasks is one token, a sign is a token a character."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lookless.reference.questions import FRUIT, TASKS, WARMTH
from lookless.reference.worlds import CHARACTERS

from .describe import DESCRIBE, ORDINALS, describe, fact, state
from .labels import SIDE, VISUAL


@dataclass(frozen=True)
class Prompt:
    """How a model is told of an image and asked about it: what its chat template writes, in pieces.

    The template leaves out system messages, as tools add them and these models have never seen one.

    ``offsets`` int ``[axes, visual tokens]`` are the positions of the visual tokens behind the first one's; text goes
    on behind the largest.
    """

    special: tuple[str, ...]
    names: dict[str, str]  # the tokenizer's and the processor's names of special tokens
    before: str
    after: str
    statement: str
    question: str
    end: str
    template: str
    offsets: np.ndarray
    lines: tuple[str, ...]  # for the tokenizer's corpus

    @property
    def span(self) -> int:
        return int(self.offsets.max()) + 1


_TEXT = "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
# LLaVA-1.5's conversation, shortened to what a model without small talk needs.
LLAVA = Prompt(
    special=("<pad>", "<s>", "</s>", "<image>"),
    names={"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"},
    before="<s>USER: ",
    after="",
    statement="\n{}",
    question="\n{} ASSISTANT:",
    end="</s>",
    template=(
        "{% for message in messages if message['role'] != 'system' %}"
        "{% if message['role'] == 'user' %}USER: "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
        f"{_TEXT}{{% endif %}}"
        "{% else %} ASSISTANT: {% if message['content'] is string %}{{ message['content'] }}{% else %}"
        f"{_TEXT}{{% endif %}}</s>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    ),
    offsets=np.arange(VISUAL)[None],
    lines=("USER: x ASSISTANT: x",),
)
# Qwen's conversation without its line breaks; a visual token's position is its time, row and column.
QWEN = Prompt(
    special=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    names={
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    before="<|im_start|>user<|vision_start|>",
    after="<|vision_end|>",
    statement="{}",
    question="{}<|im_end|><|im_start|>assistant",
    end="<|im_end|>",
    template=(
        "{% for message in messages if message['role'] != 'system' %}<|im_start|>{{ message['role'] }}"
        "{% if message['role'] == 'assistant' %} {% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for item in message['content'] if item['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% endfor %}"
        f"{_TEXT}{{% endif %}}<|im_end|>{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    ),
    offsets=np.stack((np.zeros(VISUAL, dtype=np.int64), np.arange(VISUAL) // SIDE, np.arange(VISUAL) % SIDE)),
    lines=("user assistant",),
)


def corpus(prompt: Prompt) -> list[str]:
    rng = random.Random("tokenizer")
    lines = [
        *prompt.lines * 50,
        *DESCRIBE,
        *ORDINALS,
        *["the first character is a bar of value is at the number of objects is"] * 50,
    ]
    for _ in range(3000):
        for sample, ask in TASKS.values():
            world = sample(rng)
            asked = ask(world, rng)
            words = describe(world)
            if words.startswith("sign"):  # the characters of a sign must not be merged into words
                lines += ["sign:", asked[0]]
            else:
                lines += [words, " ".join(asked or ()), " ".join(state(world, rng))]
        lines.append(" ".join(fact(rng)))
    lines += [f" {c}" for c in CHARACTERS for _ in range(50)]
    lines += [f" {w}" for w in (*FRUIT.values(), *WARMTH.values(), *ORDINALS, *map(str, range(12))) for _ in range(50)]
    return lines


def build_tokenizer(prompt: Prompt) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus(prompt),
        trainers.BpeTrainer(
            vocab_size=2000,
            min_frequency=20,
            special_tokens=list(prompt.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if "bos_token" in prompt.names:
        bos = prompt.names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    own = {name: token for name, token in prompt.names.items() if name in ("pad_token", "bos_token", "eos_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **own,
        extra_special_tokens={name: token for name, token in prompt.names.items() if name not in own},
        padding_side="left",
        chat_template=prompt.template,
        model_max_length=2048,
    )


class Words:
    """Strings to ids, remembered: the tasks have few distinct strings but for signs and descriptions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        self.pad = tokenizer.pad_token_id
        self.image = tokenizer.convert_tokens_to_ids(prompt.names["image_token"])
        self._one = lru_cache(maxsize=200_000)(self._ids)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, text: str) -> list[int]:
        return list(self._one(text))

    def words(self, text: str) -> list[int]:
        """As ``__call__``, word by word, for long descriptions whose words recur but which do not."""
        head, *tail = text.replace(",", " ,").replace(":", " :").split(" ")
        ids = self(head)
        for word in tail:
            ids += self(word if word in ",:" else f" {word}")
        return ids
