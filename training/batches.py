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

from describe import DESCRIBE, converse, describe, sample_world, state
from labels import HEADS, VISUAL, dense_labels
from lookless.reference.draw import draw
from lookless.reference.worlds import World, sample_chart, sample_scene, sample_sign
from tokens import Words

MEAN, STD = 127.5, 127.5  # the processor's image_mean and image_std of 0.5
TALK = 128  # tokens of questions and answers behind one prefix
TARGETS = 40  # answer tokens that are scored behind one prefix, at most; describing needs most
SHARED, NOWHERE = 0, -1  # segments: seen by every question; padding


@dataclass
class Batch:
    """``ids, segments`` int64 ``[batch, sequence]``; ``positions`` int64 ``[axes, batch, sequence]``;
    ``where, targets`` int64 ``[batch, TARGETS]``, target -100 where unused; ``pixels`` float ``[batch, 3, 96, 96]``;
    ``visual_at`` is where the visual tokens begin; ``shown`` int64 ``[batch, patches]`` are the patches shown, None for
    all of them."""

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    where: torch.Tensor
    targets: torch.Tensor
    pixels: torch.Tensor
    visual_at: int
    shown: torch.Tensor | None


def pixels_of(worlds: list[World]) -> torch.Tensor:
    images = np.stack([np.asarray(draw(w)) for w in worlds])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().sub_(MEAN).div_(STD)


def patch_batch(rng: random.Random, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and dense labels ``[batch, VISUAL, heads]``; text is the slow one to learn and is shown most."""
    worlds = [rng.choices((sample_scene, sample_sign, sample_chart), (3, 6, 1))[0](rng) for _ in range(size)]
    return pixels_of(worlds), torch.from_numpy(np.stack([dense_labels(w) for w in worlds]))


def focus_on(world: World, rng: random.Random, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` patches in reading order, and which of them are not random: those at which things are counted."""
    centres = np.flatnonzero(dense_labels(world)[:, list(HEADS).index("centre")]).tolist()
    others = [patch for patch in range(VISUAL) if patch not in centres]
    patches = np.array(sorted(centres + rng.sample(others, count - len(centres))))
    return patches, np.isin(patches, centres)


def _talk(
    world: World, rng: random.Random, words: Words, describing: float, facts: float, stating: float
) -> list[tuple[list[int], list[int]]]:
    """Tokens given and tokens to be answered, of each turn about ``world``."""
    prompt = words.prompt
    if rng.random() < stating:
        stated = (state(world, rng) for _ in range(25))
        return [(words(prompt.statement.format(beginning)), words(f" {end}")) for beginning, end in stated]
    talk = converse(world, rng, turns=9, facts=facts)
    if rng.random() < describing:
        talk.insert(0, (rng.choice(DESCRIBE), describe(world)))
    return [(words(prompt.question.format(q)), [*_said(words, a), *words(prompt.end)]) for q, a in talk]


def _said(words: Words, answer: str) -> list[int]:
    """`` answer`` in tokens; descriptions are put together from words, as hardly one recurs."""
    return words.words(f" {answer}") if len(answer) > 12 else words(f" {answer}")


def talk_batch(
    rng: random.Random,
    words: Words,
    size: int,
    *,
    describing: float,
    facts: float,
    stating: float,
    focus: int = VISUAL,
    extras: bool = True,
    room: int = TALK,
) -> Batch:
    """``size`` worlds with as many questions as fit in ``room`` tokens; a share ``describing`` is described first,
    a share ``stating`` gets statements and no questions. Of each image ``focus`` patches are shown; without ``extras``
    only those at which something is."""
    head, tail = words(words.prompt.before), words(words.prompt.after)
    behind = len(head) + focus  # the visual tokens
    prefix = behind + len(tail)
    offsets, resumed = words.prompt.offsets, len(head) + words.prompt.span
    start = resumed + len(tail)  # where questions begin at test time, whatever stands before them
    length = prefix + room
    ids = np.full((size, length), words.pad)
    positions = np.zeros((len(offsets), size, length), dtype=np.int64)
    segments = np.full((size, length), NOWHERE)
    where = np.zeros((size, TARGETS), dtype=np.int64)
    targets = np.full((size, TARGETS), -100)
    patches = np.tile(np.arange(focus), (size, 1))
    worlds = []
    for b in range(size):
        world = sample_world(rng)
        worlds.append(world)
        ids[b, :prefix] = [*head, *[words.image] * focus, *tail]
        segments[b, :prefix] = SHARED
        if focus < VISUAL:
            patches[b], centres = focus_on(world, rng, focus)
            if not extras:
                segments[b, len(head) : behind] = np.where(centres, SHARED, NOWHERE)
        positions[:, b, : len(head)] = range(len(head))
        positions[:, b, len(head) : behind] = len(head) + offsets[:, patches[b]]
        positions[:, b, behind:prefix] = range(resumed, start)
        at, scored = prefix, 0
        talk = _talk(world, rng, words, describing, facts, stating)
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
    return Batch(
        *(torch.from_numpy(a.astype(np.int64)) for a in (ids, positions, segments, where, targets)),
        pixels_of(worlds),
        len(head),
        torch.from_numpy(patches) if focus < VISUAL else None,
    )
