"""Text before the image, which a plan may freeze. That it equals the slow reference is in tests/test_cells.py."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.compare import TOLERANCE, far
from helpers.families import FAMILIES, model_of
from helpers.models import LAYERS
from helpers.plans import FULL, STATIC
from lookless import ModelError, Plan, Skip, apply, trace
from lookless.layer_plan import KEPT, RowSet
from lookless.runtime.families import locate
from lookless.runtime.prompts import Prompts

FROZEN = FULL.at(range(LAYERS), before=Skip())


@pytest.fixture
def llava():
    return model_of("llava"), FAMILIES["llava"]


def test_which_rows_are_before():
    """Of each prompt: none of padding or behind the first image, and none where no image follows."""
    rows = ("pptvvtvt", "tttvtttt", "vtttvttt", "pttttttt")
    visual, real = (torch.tensor([[c in kinds for c in row] for row in rows]) for kinds in ("v", "vt"))
    prompts = Prompts(visual, real)
    assert [mine.tolist() for mine in prompts.before] == [[2], [0, 1, 2], [], []]
    behind = prompts.rows(RowSet("all", "none", before=False))
    assert [mine.tolist() for mine in behind.prompts][:2] == [[5, 7], [4, 5, 6, 7]]
    later = Prompts(visual, real, past=3)
    assert all(len(mine) == 0 for mine in later.before)


def test_prompts_that_differ_in_it_alone_are_packed():
    """Their text and living tokens are at the same positions, and what is frozen is not."""
    visual, real = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0]]).bool(), torch.tensor([[1] * 4, [0, 1, 1, 1]]).bool()
    prompts = Prompts(visual, real)
    prompts.keep((torch.tensor([2]),) * 2)
    rows = prompts.rows(RowSet("all", "all", before=False))
    assert [mine.tolist() for mine in rows.prompts] == [[1, 2, 3], [2, 3]]
    assert rows.packed


@torch.no_grad()
def test_rows_that_run(llava):
    """In all layers alike; and a row whose logits are kept is computed only if it is not frozen."""
    model, family = llava
    arguments = family.batch("one image")
    ids = arguments["input_ids"]
    text = ~torch.isin(ids, torch.tensor(family.visual_ids))[0]
    before = int(text.long().argmin())
    assert before > 1
    kept = torch.tensor([0, ids.shape[1] - 1])
    with apply(model, FROZEN), trace(model) as counted:
        model(**arguments, logits_to_keep=kept)
    assert [row["ffn"] for row in counted.layers] == [ids.shape[1] - before] * (LAYERS - 1) + [1]
    assert [row["query"] for row in counted.layers[:-1]] == [ids.shape[1] - before] * (LAYERS - 1)
    assert [row["key"] for row in counted.layers] == [ids.shape[1]] * LAYERS


@torch.no_grad()
def test_nothing_is_frozen_without_an_image(llava):
    model, _ = llava
    ids = torch.tensor([[5, 6, 7, 8]])
    stock = model(input_ids=ids).logits
    with apply(model, FROZEN):
        assert torch.equal(model(input_ids=ids).logits, stock)


@torch.no_grad()
def test_it_is_what_the_layers_without_it_leave(llava):
    """Frozen in every layer, text before the image leaves the decoder as it came, but for the last norm."""
    model, family = llava
    arguments = family.batch("one image")
    with apply(model, FROZEN):
        last = model.model(**arguments).last_hidden_state[0, :2]
    embedded = locate(model).norm(model.get_input_embeddings()(arguments["input_ids"][0, :2]))
    assert far(last, embedded) < TOLERANCE


def test_a_prompt_in_chunks_is_refused(llava):
    model, family = llava
    arguments = family.batch("one image")
    with apply(model, FROZEN), pytest.raises(ModelError, match=r"before of layer 0 \(skip\) needs it whole"):
        model.generate(**arguments, max_new_tokens=1, prefill_chunk_size=5)


def test_files_of_other_plans_are_as_they_were():
    assert "before" not in json.dumps(STATIC["skip"].model_dump(mode="json"))
    again = Plan.model_validate_json(FROZEN.to_json())
    assert (again, again.hash) == (FROZEN, FROZEN.hash)
    assert "before" in str(FROZEN).splitlines()[0]


def test_what_a_plan_says():
    plan = FULL.at([1, 2], attention=Skip()).at([2, 3], ffn=Skip())
    assert plan.frozen == (2,)
    assert plan.is_prefix_cache_safe
    assert not plan.at(plan.frozen, before=Skip()).is_prefix_cache_safe
    assert FROZEN.reads()[-1].work.ffn == KEPT._replace(visual="none", before=False)
