"""The tokenizer: byte-level BPE. Every word of the reference tasks is one token, a sign is a token a character."""

from __future__ import annotations

import random
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from describe import DESCRIBE, ORDINALS, describe, fact
from lookless.reference.questions import FRUIT, TASKS, WARMTH
from lookless.reference.worlds import CHARACTERS

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
# LLaVA-1.5's conversation, shortened to what a model without small talk needs.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}{% endif %}"
    "{% else %} ASSISTANT: {% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}{% endif %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def corpus() -> list[str]:
    rng = random.Random("tokenizer")
    lines = [
        *["USER: x ASSISTANT: x"] * 50,
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
                lines += [words, " ".join(asked or ())]
        lines.append(" ".join(fact(rng)))
    lines += [f" {c}" for c in CHARACTERS for _ in range(50)]
    lines += [f" {w}" for w in (*FRUIT.values(), *WARMTH.values(), *ORDINALS, *map(str, range(12))) for _ in range(50)]
    return lines


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=2000,
            min_frequency=20,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


class Words:
    """Strings to ids, remembered: the tasks have few distinct strings but for signs and descriptions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.bos, self.eos, self.pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
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
