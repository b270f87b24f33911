"""A cache layer that holds some keys only: to transformers as long as the sequence, to its reader what it holds."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from helpers.families import FAMILIES, SPECIAL
from helpers.models import LAYERS
from helpers.slow_reference import slow_logits
from lookless import Keep, Plan, apply
from lookless.runtime.cache import TEXT, PrunedLayer, cut, layer_of, store

POSITIONS = torch.tensor([[0, 2, 3], [1, 4, -1]])
KINDS = torch.tensor([[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])


def keys_of(positions):
    """Keys that say where they stand, ``[batch, 1, slots, 1]``."""
    return positions[:, None, :, None].float()


@pytest.fixture
def layer():
    made = PrunedLayer()
    made.append(keys_of(POSITIONS), -keys_of(POSITIONS), POSITIONS, 6, KINDS)
    return made


def kinds_of(layer):
    """Of each prompt, what is remembered of the tokens held."""
    return [kinds[positions >= 0].tolist() for kinds, positions in zip(layer.kinds, layer.positions, strict=True)]


def test_it_is_as_long_as_the_sequence(layer):
    assert layer.get_seq_length() == 6
    assert layer.get_mask_sizes(2) == (8, 0)
    layer.announce(2, TEXT)
    layer.update(torch.full((2, 1, 2, 1), 9.0), torch.zeros(2, 1, 2, 1))  # what a stock layer calls
    assert layer.get_seq_length() == 8
    assert layer.positions.tolist() == [[0, 2, 3, 6, 7], [1, 4, -1, 6, 7]]
    assert kinds_of(layer) == [[0, 1, 1, 0, 0], [1, 0, 0, 0]]


def test_beams_and_batches(layer):
    assert kinds_of(layer) == [[0, 1, 1], [1, 0]]
    layer.reorder_cache(torch.tensor([1, 1]))
    assert kinds_of(layer) == [[1, 0]] * 2
    assert layer.positions.tolist() == [[1, 4, -1]] * 2
    assert layer.keys[:, 0, :2, 0].tolist() == [[1.0, 4.0]] * 2
    layer.batch_repeat_interleave(2)
    assert layer.positions.shape == (4, 3)
    layer.batch_select_indices(torch.tensor([3]))
    assert layer.positions.tolist() == [[1, 4, -1]]
    assert layer.keys.shape[0] == layer.values.shape[0] == 1


@pytest.mark.parametrize(("by", "left"), [(-3, 3), (3, 3), (0, 6), (-1, 5)])
def test_cropping_is_by_the_sequence(layer, by, left):
    layer.crop(by)
    assert layer.get_seq_length() == left
    for b, positions in enumerate(layer.positions.tolist()):
        assert [p for p in positions if p >= 0] == [p for p in POSITIONS[b].tolist() if 0 <= p < left]
    held = layer.positions >= 0
    assert torch.equal(layer.keys[:, 0, :, 0][held], layer.positions[held].float())
    assert torch.equal(layer.kinds[held], KINDS.gather(1, layer.positions.clamp_min(0))[held].to(torch.int8))


def test_copies_and_resets(layer):
    other = copy.deepcopy(layer)
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.positions is None
    assert other.positions.tolist() == POSITIONS.tolist()


def test_a_plain_layer_goes_on_as_a_pruned_one():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), 0)
    store(
        cache, 0, torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([[1]]), 2, torch.tensor([[True, False]])
    )
    held = layer_of(cache, 0)
    assert isinstance(held, PrunedLayer)
    assert held.positions.tolist() == [[0, 1, 2, 4]]
    assert cache.get_seq_length() == 5
    store(cache, 2, torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([[0]]), 1, torch.tensor([[True]]))
    assert layer_of(cache, 2).get_seq_length() == 1


def test_masks_are_cut(layer):
    boolean = torch.rand(2, 1, 1, 7) > 0.3
    taken = cut(boolean, layer, 1)
    for b, positions in enumerate(POSITIONS.tolist()):
        wanted = [bool(boolean[b, 0, 0, p]) if p >= 0 else False for p in (*positions, 6)]
        assert taken[b, 0, 0].tolist() == wanted
    floating = torch.zeros(2, 1, 1, 7).masked_fill(~boolean, torch.finfo(torch.float32).min)
    assert torch.equal(cut(floating, layer, 1) == 0, taken)
    assert cut(None, layer, 1).tolist() == [[[[True] * 4]], [[[True, True, False, True]]]]  # one slot is empty
    whole = PrunedLayer()
    whole.append(keys_of(POSITIONS[:1]), keys_of(POSITIONS[:1]), POSITIONS[:1], 6)
    assert cut(None, whole, 1) is None
    plain = DynamicLayer()
    assert cut(boolean, plain, 1) is boolean
    assert cut(boolean, None, 1) is boolean


@torch.no_grad()
def test_prompts_of_one_length_that_keep_unlike_numbers():
    """No padding, so stock decodes without a mask; yet one prompt's cache has empty slots."""
    family = FAMILIES["qwen2_vl"]
    model = family.build()
    plan = Plan.full(LAYERS).at([2], keep=Keep(0.5, rank="key_norm"))
    arguments = family.arguments((5, "image", 7), (5, "wide", 9))
    assert arguments["attention_mask"].all()
    new = 4
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": SPECIAL}
    with apply(model, plan):
        answer = model.generate(**arguments, **options)
    length = arguments["input_ids"].shape[1]
    whole = {**arguments, "input_ids": answer.sequences, "attention_mask": torch.ones_like(answer.sequences)}
    whole["mm_token_type_ids"] = torch.nn.functional.pad(arguments["mm_token_type_ids"], (0, new))
    slow = slow_logits(model, plan, whole, family.visual_ids, [length, length + new])[:, length - 1 : -1]
    assert (torch.stack(answer.logits, 1) - slow).abs().max() < 1e-4 * slow.abs().max()
