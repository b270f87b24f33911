"""Which visual tokens stay alive, against the slow reference."""

from __future__ import annotations

import pytest
import torch

from helpers.families import FAMILIES
from helpers.loaded import ONE, loaded_of, made
from helpers.plans import DECODE, FULL, RANKED, STATIC
from helpers.slow_reference import Conversation, slow_logits
from lookless import Keep, Skip
from lookless.calibration.kept_tokens import KeptTokens, drops_tokens, kept_tokens
from lookless.limits import can_run
from lookless.runtime.families import geometry_of
from lookless.runtime.patching import check_stock

PLANS = {
    "twice": STATIC["keep"],
    "withdrawn": STATIC["withdraw"],
    "merged": STATIC["recycle"],
    "by attention": RANKED["keep by last_query_attention"],
    "by diversity": RANKED["keep by diversity"],
    "filter": DECODE["filter"],
}


def alive_slowly(model, plan, arguments, visual_ids, monkeypatch):
    """Numbers of the living visual tokens in each layer."""
    found = []
    run = Conversation.layer

    def noted(self, *args):
        out = run(self, *args)
        rows = self.visual.nonzero().flatten().tolist()
        found.append([i for i, row in enumerate(rows) if self.alive[row]])
        return out

    monkeypatch.setattr(Conversation, "layer", noted)
    slow_logits(model, plan, arguments, visual_ids)
    return found


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_are_the_slow_references(family, name, monkeypatch):
    model, arguments = made(family)
    geometry = geometry_of(model)
    if not all(can_run(row, geometry, layer) for layer, row in enumerate(PLANS[name].layers)):
        pytest.skip("ranks that read keys, of which a gated delta rule has none")
    with torch.no_grad():
        before = model(**arguments).logits
    [kept] = kept_tokens(loaded_of(model, arguments), ONE, PLANS[name], progress=False)
    check_stock(model)
    with torch.no_grad():
        assert torch.equal(model(**arguments).logits, before)  # the model is as it was
    slowly = alive_slowly(model, PLANS[name], arguments, FAMILIES[family].visual_ids, monkeypatch)
    assert kept.visual == int(torch.isin(arguments["input_ids"], torch.tensor(FAMILIES[family].visual_ids)).sum())
    alive = [*range(kept.visual)]
    stages = {stage.layer: [*stage.kept] for stage in kept.stages}
    for layer, expected in enumerate(slowly):
        alive = stages.get(layer, alive)
        assert alive == expected
    assert kept.grids == ()  # two pictures in the prompt, and one in the sample


def test_a_plan_that_drops_nothing_has_no_stage_and_the_record_is_read_back(tmp_path):
    model, arguments = made("llava")
    skips = FULL.at([1], attention=Skip())
    assert not drops_tokens(skips)
    assert drops_tokens(FULL.at([1], keep=Keep(0)))
    found = kept_tokens(loaded_of(model, arguments), ONE, skips, progress=False)
    assert [one.stages for one in found] == [()]
    record = KeptTokens(model="tiny", plan_hash=skips.hash, kept={"mine": found})
    path = record.save(tmp_path / "kept.json")
    assert KeptTokens.model_validate_json(path.read_bytes()) == record
