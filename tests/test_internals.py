"""What the runtime uses inside transformers is checked when a plan is applied, in one sentence."""

from __future__ import annotations

import re

import pytest
from torch import nn

from helpers.families import FAMILIES
from helpers.plans import FULL, OF_TOWER
from lookless import Keep, Skip, apply
from lookless.errors import ModelError
from lookless.runtime import internals

PLAN = FULL.at([0], attention=Skip())


class Renamed(nn.Module):
    """A layer whose cache comes under another name."""

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, cache=None, **kwargs):
        return hidden_states


class Wrapper(nn.Module):
    def forward(self, *args, **kwargs):
        return args


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_what_is_needed(name):
    apply(FAMILIES[name].build(), PLAN).remove()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("self_attn", "q_proj"),
        ("self_attn", "scaling"),
        ("self_attn", "layer_idx"),
        ("mlp", "gate_proj"),
        ("", "post_attention_layernorm"),
    ],
)
def test_a_part_that_is_missing_is_named(path, name):
    model = FAMILIES["llava"].build()
    delattr(model.model.language_model.layers[1].get_submodule(path), name)
    with pytest.raises(ModelError, match=rf"^\w+ of transformers [\d.]+\S* has no {name}, which a plan needs: install"):
        apply(model, PLAN)
    assert "forward" not in model.model.language_model.layers[0].__dict__  # nothing is replaced


def test_arguments_are_checked_by_name():
    with pytest.raises(ModelError, match=re.escape("Renamed of transformers")):
        internals.require_arguments(Renamed(), *internals.LAYER_CALL)
    internals.require_arguments(Wrapper(), *internals.LAYER_CALL)  # names nothing, and passes everything on


def test_the_cache_is_checked(monkeypatch):
    monkeypatch.setattr(internals, "DynamicCache", type("DynamicCache", (), {"layers": []}))
    internals._check_cache.cache_clear()
    with pytest.raises(ModelError, match=r"^DynamicCache of transformers .* has no layer_class_to_replicate"):
        apply(FAMILIES["llava"].build(), PLAN)
    monkeypatch.undo()
    apply(FAMILIES["llava"].build(), PLAN).remove()


def test_a_tower_is_checked_where_a_rank_reads_it():
    model = FAMILIES["llava"].build()
    del model.model.vision_tower.encoder.layers[-1].self_attn.scale
    apply(model, PLAN).remove()
    with pytest.raises(ModelError, match="has no scale, which a plan needs"):
        apply(model, FULL.at([0], keep=Keep(0.5, rank=OF_TOWER[0])))
