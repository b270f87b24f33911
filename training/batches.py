"""Worlds to tensors.

Many questions share one image: the image is a prefix that every question sees, and no question
sees another. Each question so stands exactly as it does at test time, at a tenth of the cost, and no answer can be
read off an earlier one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from lookless.reference.draw import draw
from lookless.reference.worlds import Sign, World, sample_chart, sample_scene, sample_sign, sample_table

from .describe import DESCRIBE, converse, describe, state
from .labels import LABELS, VISUAL, dense_labels
from .tokens import Words

MEAN, STD = 127.5, 127.5  # the processor's image_mean and image_std of 0.5
TALK = 192  # tokens of questions and answers behind one prefix
TARGETS = 60  # answer tokens that are scored behind one prefix, at most; describing needs most
# Segments: seen by every question; padding; a patch that no question reads, and later patches do.
SHARED, NOWHERE, UNREAD = 0, -1, -2


@dataclass
class Batch:
    """What one step sees.

    Attributes:
        ids, segments: int64 ``[batch, sequence]``.
        positions: int64 ``[axes, batch, sequence]``.
        where, targets: int64 ``[batch, TARGETS]``, the target -100 where unused.
        pixels: float ``[batch, 3, 96, 96]``.
        labels: int64 ``[batch, VISUAL, len(LABELS)]``.
        visual_at: where the visual tokens begin.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    where: torch.Tensor
    targets: torch.Tensor
    pixels: torch.Tensor
    labels: torch.Tensor
    visual_at: int

    def to(self, device: torch.device) -> Batch:
        return Batch(*(v.to(device) if isinstance(v, torch.Tensor) else v for v in vars(self).values()))


def pixels_of(worlds: list[World]) -> torch.Tensor:
    images = np.stack([np.asarray(draw(w)) for w in worlds])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().sub_(MEAN).div_(STD)


def labels_of(worlds: list[World]) -> torch.Tensor:
    return torch.from_numpy(np.stack([dense_labels(w) for w in worlds]))


def sample_to_see(rng: random.Random) -> World:
    """Text is the slow one to learn and is shown most."""
    kinds = (sample_scene, sample_sign, sample_table, sample_chart)
    return rng.choices(kinds, (3, 6, 3, 1))[0](rng)


def _talk(
    world: World, rng: random.Random, words: Words, describing: float, facts: float, stating: float
) -> list[tuple[list[int], list[int]]]:
    """Tokens given and tokens to be answered, of each turn about ``world``."""
    prompt = words.prompt
    if rng.random() < (max(stating, 0.5) if isinstance(world, Sign) else stating):  # all its questions are one
        stated = (state(world, rng) for _ in range(25))
        return [(words(prompt.statement.format(beginning)), words(f" {end}")) for beginning, end in stated]
    talk = converse(world, rng, turns=16, facts=facts)
    if rng.random() < describing:
        talk.insert(0, (rng.choice(DESCRIBE), describe(world)))
    return [(words(prompt.question.format(q)), [*_said(words, a), *words(prompt.end)]) for q, a in talk]


def _said(words: Words, answer: str) -> list[int]:
    """`` answer`` in tokens; descriptions are put together from words, as hardly one recurs."""
    return words.words(f" {answer}") if len(answer) > 12 else words(f" {answer}")


def image_batch(rng: random.Random, words: Words, size: int) -> Batch:
    """Images, and nothing said about them."""
    worlds = [sample_to_see(rng) for _ in range(size)]
    return talk_batch(rng, words, worlds, describing=0.0, facts=0.0, stating=0.0, room=0)


def talk_batch(
    rng: random.Random,
    words: Words,
    worlds: list[World],
    *,
    describing: float,
    facts: float,
    stating: float,
    focus: bool = False,
    room: int = TALK,
) -> Batch:
    """``worlds`` with as many questions as fit in ``room`` tokens; a share ``describing`` is described first,
    a share ``stating`` gets statements and no questions. With ``focus`` the talk reads only the patches at which
    something is counted; the other patches are there, and patches read them.
    """
    head, tail = words(words.prompt.before), words(words.prompt.after)
    behind = len(head) + VISUAL  # the visual tokens
    prefix = behind + len(tail)
    resumed = len(head) + words.prompt.span
    start = resumed + len(tail)  # where questions begin at test time, whatever stands before them
    size, length = len(worlds), prefix + room
    ids = np.full((size, length), words.pad)
    ids[:, :prefix] = [*head, *[words.image] * VISUAL, *tail]
    positions = np.zeros((len(words.prompt.offsets), size, length), dtype=np.int64)
    positions[..., : len(head)] = range(len(head))
    positions[..., len(head) : behind] = (len(head) + words.prompt.offsets)[:, None]
    positions[..., behind:prefix] = range(resumed, start)
    segments = np.full((size, length), NOWHERE)
    segments[:, :prefix] = SHARED
    where = np.zeros((size, TARGETS), dtype=np.int64)
    targets = np.full((size, TARGETS), -100)
    labels = labels_of(worlds)
    if focus:
        segments[:, len(head) : behind][~labels[..., LABELS.index("counted")].bool().numpy()] = UNREAD
    for b, world in enumerate(worlds):
        at, scored = prefix, 0
        talk = _talk(world, rng, words, describing, facts, stating) if room else ()
        for turn, (asked, answered) in enumerate(talk, start=1):
            tokens = asked + answered
            if at + len(tokens) > length or scored + len(answered) > TARGETS:
                continue
            here = slice(at, at + len(tokens))
            ids[b, here] = tokens
            positions[:, b, here] = range(start, start + len(tokens))
            segments[b, here] = turn
            first = at + len(asked) - 1
            where[b, scored : scored + len(answered)] = range(first, first + len(answered))
            targets[b, scored : scored + len(answered)] = answered
            at += len(tokens)
            scored += len(answered)
    arrays = (ids, positions, segments, where, targets)
    return Batch(*(torch.from_numpy(a.astype(np.int64)) for a in arrays), pixels_of(worlds), labels, len(head))
