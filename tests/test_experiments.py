"""Experiments: every one end to end on a shipped model, what is measured is kept, and their own arithmetic, slowly."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pytest
import torch

from helpers.cli import fails, run
from helpers.compare import TOLERANCE, far
from helpers.families import FAMILIES
from helpers.loaded import loaded_of
from helpers.models import BATCHES, tiny_llava
from lookless import Plan, Skip, load_data
from lookless.calibration.replay import visual_prompts
from lookless.comparison.results import Outcome
from lookless.evaluation import Estimate
from lookless.experiments.agreement import jaccard, mean_jaccard
from lookless.experiments.claims import alike, beats, keeps
from lookless.experiments.lab import Lab, Sizes
from lookless.experiments.registry import chosen, experiments
from lookless.experiments.report import FAILS, HOLDS, OPEN, Finding, Report, Table, above_zero, at_least, equal
from lookless.experiments.run import lab_of, run_experiment
from lookless.experiments.store import Numbers, Store, fingerprint

TASKS = ("reference:chart", "reference:counting")
SIZES = Sizes(questions=2, samples=1, seeds=2)
OF_HYBRIDS = ("hybrid-mixers",)  # tests/test_hybrid_mixers.py has it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def lab(reference, folder) -> Lab:
    """One lab for all tests, as a user's experiments share what is measured."""
    return lab_of(reference, TASKS, folder, SIZES)


def pages(lab, name):
    return {end: (lab.folder / name).with_suffix(end).read_bytes() for end in (".json", ".md", ".png")}


def written(lab):
    """The cells, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in lab.store.folder.glob("*.json")}


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in experiments() if name not in OF_HYBRIDS])
def test_each_runs_and_a_resumed_run_writes_the_same(name, lab, reference, folder):
    report = run_experiment(chosen(name)[name], lab)
    assert report.tables
    assert report.findings
    for table in report.tables:
        assert table.rows
        assert all(len(row) == len(table.heads) for row in table.rows)
    before = pages(lab, name)
    assert Report.model_validate_json(before[".json"]) == report
    assert before[".png"].startswith(b"\x89PNG")
    cells = written(lab)
    run_experiment(chosen(name)[name], lab_of(reference, TASKS, folder, SIZES))
    assert written(lab) == cells, "a cell was measured twice"
    after = pages(lab, name)
    assert (after[".json"], after[".md"]) == (before[".json"], before[".md"])


def test_a_cell_is_known_by_all_that_it_depends_on(tmp_path, lab):
    store, made = Store(tmp_path), []

    def cell(*parts):
        return store.cell(
            "a name/with: signs", parts, Numbers, lambda: made.append(parts) or Numbers(values={"x": (0.1,)})
        )

    assert cell("plan", 1) == cell("plan", 1)
    assert len(made) == 1
    cell("plan", 2)
    assert len(made) == 2
    assert len([*tmp_path.iterdir()]) == 2
    model = tiny_llava()
    before = fingerprint(model)
    assert fingerprint(tiny_llava()) == before
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert fingerprint(model) != before
    full = Plan.full(lab.geometry)
    one = lab.answers("one", TASKS[0], full.at([11], attention=Skip()))
    two = lab.answers("two", TASKS[0], full.at([10], attention=Skip()))
    assert (one.method, one.task) == ("one", TASKS[0])
    assert one.kept > two.kept  # what the last layer does to visual tokens is dead work
    assert one.dense == lab.answers("full", TASKS[0], full).right


def test_draws_share_no_prompt_with_each_other_or_the_questions(reference, tmp_path, lab):
    sets = [set(lab.draw(TASKS[0], seed).hashes) for seed in range(3)] + [set(lab.work.test[TASKS[0]].hashes)]
    assert len(set.union(*sets)) == sum(map(len, sets))
    lines = []
    for i, sample in enumerate(load_data("reference:chart", limit=8)):
        sample.images[0].save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "question": sample.question, "answer": sample.answer}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    mine = lab_of(reference, [str(tmp_path / "mine.jsonl")], tmp_path / "out", Sizes(questions=3, samples=2, seeds=2))
    [name] = mine.tasks
    assert mine.short == {name: "mine"}
    test = set(mine.work.test[name].hashes)
    assert not any(test & set(mine.draw(name, seed).hashes) for seed in range(4))
    few = lab_of(reference, [name], tmp_path / "few", Sizes(questions=6, samples=2, seeds=2))
    with pytest.raises(Exception, match="2 lines beside the 6 questions, and other draws of 2 need 4"):
        few.draw(name, 1)


def test_the_random_draws_are_other_layers(lab):
    plans = {lab.plan("random-layers", TASKS[0], layers=6, seed=seed).layers for seed in range(3)}
    assert len(plans) == 3


def slow_literal(model, arguments, visual, layers):
    """Logits of reading 2, layer by layer with the model's own parts: x + attention, but at visual rows x + norm(x)."""
    decoder, seen = model.model.language_model, {}
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    model(**arguments)
    hook.remove()
    x, length = seen["inputs_embeds"], seen["inputs_embeds"].shape[1]
    causal = torch.full((length, length), torch.finfo(x.dtype).min).triu(1)[None, None]
    rotary = decoder.rotary_emb(x, torch.arange(length)[None])
    for index, layer in enumerate(decoder.layers):
        normed = layer.input_layernorm(x)
        added = layer.self_attn(normed, position_embeddings=rotary, attention_mask=causal)[0]
        if index in layers:
            added[visual] = normed[visual]
        x = x + added
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(decoder.norm(x))


@torch.no_grad()
def test_reading_two_adds_the_normalised_state_and_only_there():
    from lookless.experiments.v_skip_readings import literal

    model, arguments = tiny_llava(), BATCHES["one image"]()
    visual = torch.isin(arguments["input_ids"], torch.tensor(model.config.image_token_id))
    stock, slow = model(**arguments).logits, slow_literal(model, arguments, visual, (1, 3))
    with literal(loaded_of(model, arguments), [1, 3]):
        found = model(**arguments).logits
    assert far(found, slow) < TOLERANCE
    assert far(found, stock) > 100 * TOLERANCE
    assert torch.equal(model(**arguments).logits, stock), "the hooks are still there"


def slow_reduced(model, arguments, attention, ffn, window):
    """Logits with every token reduced: attention rows cut to a window, and an FFN whose other neurons are zero."""
    decoder, seen = model.model.language_model, {}
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    model(**arguments)
    hook.remove()
    x = seen["inputs_embeds"]
    length = x.shape[1]
    rotary = decoder.rotary_emb(x, torch.arange(length)[None])
    for index, layer in enumerate(decoder.layers):
        mask = torch.full((length, length), torch.finfo(x.dtype).min)
        for q in range(length):
            first = max(0, q - window + 1) if index in attention else 0
            mask[q, first : q + 1] = 0
        x = (
            x
            + layer.self_attn(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask[None, None])[0]
        )
        h = layer.post_attention_layernorm(x)
        inner = layer.mlp.act_fn(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h)
        if index in ffn:
            probes = np.linspace(0, length - 1, max(1, round(0.1 * length))).round().astype(int)
            magnitude = inner[0, probes].abs().mean(0)
            weakest = magnitude.argsort()[: len(magnitude) - max(1, round(0.2 * len(magnitude)))]
            inner[..., weakest] = 0
        x = x + layer.mlp.down_proj(inner)
    return model.lm_head(decoder.norm(x))


@torch.no_grad()
def test_text_is_reduced_as_the_slow_way_does_and_not_in_padding_or_decoding():
    from lookless.experiments.redundancy_text import text_too

    model, arguments = tiny_llava(), BATCHES["one image"]()
    slow = slow_reduced(model, arguments, (0, 2), (1, 2), 5)
    with text_too(loaded_of(model, arguments), (0, 2), (1, 2), 5):
        assert far(model(**arguments).logits, slow) < TOLERANCE
        padded = BATCHES["padded left"]()
        together = model(**padded).logits[:, -1]
        for b in range(2):
            real = padded["attention_mask"][b].bool()
            alone = {k: v[b : b + 1, real] for k, v in padded.items() if k != "pixel_values"}
            alone["pixel_values"] = padded["pixel_values"][b : b + 1]
            assert far(together[b], model(**alone).logits[0, -1]) < TOLERANCE
        cache = model(**arguments, use_cache=True).past_key_values
        inside = model(torch.tensor([[7]]), past_key_values=deepcopy(cache)).logits
    assert torch.equal(inside, model(torch.tensor([[7]]), past_key_values=cache).logits), "a decode step was changed"


@torch.no_grad()
def test_a_token_s_contribution_is_what_its_row_of_attention_gives():
    """Against heads one by one: without a token the output is the sum over all others."""
    from lookless.experiments.visipruner_tokens import concentration

    generator = torch.Generator().manual_seed(0)
    heads, groups, width, keys = 4, 2, 3, 7
    weights = torch.rand(heads, keys, generator=generator).softmax(-1)
    value = torch.randn(keys, groups * width, generator=generator)
    value[4] *= 0.01  # a token that gives next to nothing is not needed for nine tenths
    visual = torch.tensor([0, 1, 1, 0, 1, 1, 0]).bool()
    turn, few = concentration(weights, value, visual, width)

    def output(tokens):
        each = [sum(weights[h, t] * value[t].view(groups, width)[h // 2] for t in tokens) for h in range(heads)]
        return torch.cat(each)

    everything, mine = range(keys), [1, 2, 4, 5]
    turns = [
        1 - float(torch.cosine_similarity(output([t for t in everything if t != one]), output(everything), dim=0))
        for one in mine
    ]
    assert turn == pytest.approx(max(turns), rel=1e-4)
    lengths = sorted((float(output([one]).norm()) for one in mine), reverse=True)
    assert few == next(n for n in range(1, 5) if sum(lengths[:n]) >= 0.9 * sum(lengths)) < 4


@torch.no_grad()
def test_the_answer_s_state_is_that_of_the_last_prompt_token(lab):
    from lookless.experiments.operator_updates import SHIFT, TURN, _removed

    found = _removed(lab, TASKS[0], "ffn")
    model = lab.loaded.model
    [prompt] = visual_prompts(lab.loaded, lab.draw(TASKS[0]), "", "last", False)

    def state():
        return model.model(**prompt.inputs, use_cache=False).last_hidden_state[0, -1]

    dense = state()
    decoder = model.model.language_model
    for layer in (2, 7):
        hook = decoder.layers[layer].mlp.register_forward_hook(lambda _, __, out: out * ~prompt.visual[None, :, None])
        changed = state()
        hook.remove()
        assert found[TURN][layer] == pytest.approx(1 - float(torch.cosine_similarity(dense, changed, dim=0)), abs=1e-5)
    assert found[SHIFT][11] == pytest.approx(0, abs=1e-6)


def test_moments_are_numpy_s(lab):
    from lookless.experiments.redundancy import _Moments

    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 2
    moments = _Moments()
    for part in x:
        moments.add(part)
    tokens = x.flatten(0, 1).double().numpy()
    assert moments.size == pytest.approx(np.abs(tokens).mean())
    assert moments.variance == pytest.approx(tokens.var(0).mean())


def test_stratified_draws_have_as_many_of_each_task():
    from lookless.experiments.v_skip_samples import RANDOM, STRATIFIED, _drawn

    gains = [[(float(task), float(i)) for i in range(9)] for task in range(3)]
    rng = np.random.default_rng(0)
    rows = _drawn(gains, STRATIFIED, 13, rng)
    assert sorted(sum(row[0] == task for row in rows) for task in range(3)) == [4, 4, 5]
    assert len(set(rows)) == 13
    counts = {sum(row[0] == 0 for row in _drawn(gains, RANDOM, 13, rng)) for _ in range(20)}
    assert len(counts) > 1
    assert len(set(_drawn(gains, RANDOM, 13, rng))) == 13


def test_masks_agree_as_sets_do():
    assert jaccard((1, 2, 3), (2, 3, 4)) == 0.5
    assert jaccard((), ()) == 1
    assert mean_jaccard([(1, 2), (1, 2), (3, 4)]) == pytest.approx(1 / 3)


def test_verdicts_are_open_while_the_interval_is():
    def e(value, low, high):
        return Estimate(value=value, low=low, high=high)

    assert [at_least(e(1, low, high), 0.9) for low, high in ((0.9, 1), (0.5, 0.89), (0.5, 1))] == [HOLDS, FAILS, OPEN]
    assert at_least(None, 0.9) == OPEN
    assert [above_zero(e(0, *b)) for b in ((0.1, 1), (-1, -0.1), (-1, 1), (0, 0))] == [HOLDS, FAILS, OPEN, OPEN]
    assert [equal(e(0, *b), 0.02) for b in ((-0.02, 0.01), (0.03, 1), (-1, -0.03), (-1, 1))] == [
        HOLDS,
        FAILS,
        FAILS,
        OPEN,
    ]


def test_a_few_equal_answers_do_not_show_that_methods_are_equal():
    def outcome(right, task="a"):
        rest = {"kept": 1.0, "kept_papers": None, "kept_live": 1.0}
        return Outcome(method="m", setting="", task=task, right=right, dense=(True,) * len(right), same=right, **rest)

    few, many = (True,) * 20, (True,) * 160
    assert alike("T", "c", (outcome(few),), (outcome(few),), "above").verdict == OPEN
    assert alike("T", "c", (outcome(many),), (outcome(many),), "above").verdict == HOLDS
    assert keeps("T", "c", (outcome(few), outcome(few, "b")), 0.99, "here").verdict == OPEN
    assert "100.0 % (92.5 to 107.5) here." in keeps("T", "c", (outcome(few), outcome(few, "b")), 0.99, "here").measured
    assert beats("T", "c", (outcome(few),), (outcome((False,) * 20),), "above").verdict == HOLDS
    assert beats("T", "c", (outcome(few),), (outcome(few),), "above").verdict == OPEN


def test_a_page_has_everything():
    table = Table(
        title="T",
        heads=("what", "kept, %", "n"),
        rows=(("a", Estimate(value=0.5, low=0.25, high=1), 3), ("b", 0.125, None)),
    )
    assert "| a | 50.0 (25.0 to 100.0) | 3 |" in table.markdown()
    assert "| b | 12.5 | - |" in table.markdown()
    finding = Finding(where="Table 1", claim="it works", measured="it does.", verdict=HOLDS)
    report = Report(
        experiment="x", title="t", paper="1", model="m", settings={"questions": 2}, tables=(table,), findings=(finding,)
    )
    page = report.markdown("x.png")
    assert "* **holds**: it works (Table 1). Here: it does." in page
    assert "![t](x.png)" in page
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_command(tmp_path):
    listed = run("experiment")
    assert listed.exit_code == 0
    assert set(json.loads(run("experiment", "--json").stdout)) == set(experiments())
    assert all(name in listed.stdout for name in experiments())
    assert "no experiment is called 'none'" in fails("experiment", "none")
    assert "on what data is my-model to answer?" in fails("experiment", "v-skip-masks", "my-model")
    small = ("--questions", 2, "--samples", 1, "--seeds", 2, "--out", tmp_path, "--data", TASKS[0])
    assert "there is one task" in fails("experiment", "v-skip-transfer", "reference", *small)
    done = run("experiment", "operator-risks", "reference", *small)
    assert done.exit_code == 0, done.output
    assert "the last quarter of the layers is silent" in " ".join(done.stdout.split())
    assert (tmp_path / "reference" / "operator-risks.md").is_file()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_hooks_see_the_prompt_of_every_family(name):
    """Which tokens are visual and real is read at the inner model, whatever the family."""
    from lookless.experiments.hooks import watched

    family, model = FAMILIES[name], FAMILIES[name].build()
    arguments = family.batch("padded left")
    with watched(loaded_of(model, arguments)) as (_, prompt):
        model(**arguments)
    assert torch.equal(prompt.visual, torch.isin(arguments["input_ids"], torch.tensor(family.visual_ids)))
    assert torch.equal(prompt.real, arguments["attention_mask"].bool())
