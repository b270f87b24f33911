"""Mass and similarity of attention, against the weights that the model returns itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from helpers.families import FAMILIES
from helpers.loaded import ONE, loaded_of, made
from lookless.calibration.attention_maps import AttentionProfile, attention_profile
from lookless.errors import ModelError
from lookless.runtime.families import locate


@pytest.mark.parametrize("family", FAMILIES)
def test_profiles_equal_loops_over_returned_weights(family):
    model, arguments = made(family)
    located = locate(model)
    if located.geometry.delta is not None:
        with pytest.raises(ModelError, match="there is no attention map of them"):
            attention_profile(loaded_of(model, arguments), ONE, progress=False)
        return
    with torch.no_grad():
        before = model(**arguments).logits
    profile = attention_profile(loaded_of(model, arguments), ONE, progress=False)
    with torch.no_grad():
        assert torch.equal(model(**arguments).logits, before)  # the model is as it was
    assert locate(model).decoder.config._attn_implementation == "sdpa"

    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**arguments, output_attentions=True).attentions
    ids = arguments["input_ids"][0]
    visual = [i for i, one in enumerate(located.visual(ids).tolist()) if one]
    text = [i for i in range(len(ids)) if i > visual[0] and i not in visual]
    before_map = None
    for layer, weights in enumerate(maps):
        mean = weights[0].mean(0).numpy()
        mass = np.mean([sum(mean[row, key] for key in visual) for row in text])
        assert profile.mass[0][layer] == pytest.approx(mass, abs=1e-5)
        now = np.array([[mean[row, key] for key in visual] for row in visual]).ravel()
        if before_map is not None:
            cosine = now @ before_map / np.linalg.norm(now) / np.linalg.norm(before_map)
            assert profile.similarity[0][layer - 1] == pytest.approx(cosine, abs=1e-4)
        before_map = now


def test_a_profile_is_complete():
    whole = {"data": "d", "data_hash": "h", "mass": ((0.5, 0.25), (0.25, 0.25)), "similarity": ((0.5,), (1.0,))}
    assert AttentionProfile(**whole).mean_mass == (0.375, 0.25)
    assert AttentionProfile(**whole).mean_similarity == (0.75,)
    with pytest.raises(ValidationError, match="mass needs 2 numbers a sample and similarity 1"):
        AttentionProfile(**{**whole, "similarity": ((0.5, 0.5), (1.0, 1.0))})
