"""The recipe of the reference models: what a step sees, what is labelled, and how one model begins from another."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from lookless.reference import MODELS
from lookless.reference.worlds import Chart, Scene, Sign, Table, sample_chart, sample_scene, sample_sign, sample_table
from lookless.runtime.mixers import is_delta, mixer_of
from training.architecture import ARCHITECTURES, WIDTH
from training.batches import SHARED, UNREAD, talk_batch
from training.describe import PATCH, sample_world
from training.graft import given, graft, graft_batch
from training.hybrid import borrow, fit, mixing_loss
from training.labels import COLOUR, CONTENT, LABELS, SIDE, VISUAL, dense_labels
from training.losses import dense_loss, hidden_states, readers, surroundings, talking_loss, visible, visual_rows
from training.muon import Muon
from training.tokens import Words, build_tokenizer

QUIET = {"describing": 0.0, "facts": 0.0, "stating": 0.5}


def worlds(count: int) -> list:
    rng = random.Random("worlds")
    return [sample_world(rng) for _ in range(count)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def begun(request):
    """Each architecture before its first step, with random branches, so that every layer does something."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[request.param]
    words = Words(build_tokenizer(architecture.prompt), architecture.prompt)
    model = architecture.build(words.tokenizer)
    for layer in model.model.language_model.layers:
        mixer = mixer_of(layer)
        (mixer.out_proj if is_delta(layer) else mixer.o_proj).weight.data.normal_(std=0.05)
        layer.mlp.down_proj.weight.data.normal_(std=0.05)
    return architecture, words, model


def test_a_question_reads_its_image_and_itself(begun):
    _, words, _ = begun
    segments = talk_batch(random.Random("mask"), words, worlds(1), focus=True, room=24, **QUIET).segments
    [seen] = visible(segments)[:, 0].tolist()
    row = segments[0].tolist()
    for query, mine in enumerate(row):
        for key, its in enumerate(row):
            image = its == SHARED or (its == UNREAD and mine <= SHARED)
            if mine == -1 or its == -1:
                image = False
            assert seen[query][key] == (query == key or (key < query and (image or (mine == its and mine > 0))))


@torch.no_grad()
def test_focus_hides_patches_from_the_talk_alone(begun):
    """Patches see each other as ever; what is said no longer depends on those at which nothing is."""
    architecture, words, model = begun
    whole, focused = (
        talk_batch(random.Random("focus"), words, worlds(2), focus=f, room=24, **QUIET) for f in (False, True)
    )
    visual = architecture.visual(model, whole.pixels)
    one, other = (hidden_states(model, b, visual) for b in (whole, focused))
    assert torch.equal(visual_rows(whole, one[-1]), visual_rows(focused, other[-1]))
    talk = focused.segments > 0
    assert not torch.allclose(one[-1][talk], other[-1][talk], atol=1e-2)
    counted = focused.labels[..., LABELS.index("counted")] == 1
    read = focused.segments[:, focused.visual_at : focused.visual_at + VISUAL] == SHARED
    assert torch.equal(counted, read)


@pytest.mark.parametrize("sample", [sample_scene, sample_sign, sample_chart, sample_table])
def test_far_labels(sample):
    """Against the world itself, read a second way."""
    for i in range(30):
        world = sample(random.Random(f"far:{i}"))
        labels = dense_labels(world)
        named = {name: labels[:, column] for column, name in enumerate(LABELS)}
        counted = np.flatnonzero(named["counted"])
        assert (named["ordinal"][named["counted"] == 0] == -100).all()
        if isinstance(world, Scene):
            things = {(t.y + t.radius - 1) // PATCH * SIDE + t.x // PATCH: t for t in world.things}
            assert set(things) == set(counted)
            for n, (at, thing) in enumerate(things.items(), start=1):
                earlier = world.things[:n]
                assert named["ordinal"][at] == n
                assert named["ordinal of colour"][at] == sum(t.colour == thing.colour for t in earlier)
                assert named["ordinal of content"][at] == sum(t.shape == thing.shape for t in earlier)
                left = [t for t in earlier[:-1] if t.y // 24 == thing.y // 24]
                above = [t for t in earlier[:-1] if t.x // 24 == thing.x // 24]
                for side, line in (("left", left), ("above", above)):
                    wanted = (CONTENT.index(line[-1].shape), COLOUR.index(line[-1].colour)) if line else (0, 0)
                    assert (named[f"{side} content"][at], named[f"{side} colour"][at]) == wanted
        elif isinstance(world, Sign):
            places = sorted(counted, key=lambda at: named["ordinal"][at])
            assert "".join(CONTENT[named["content"][at]] for at in places) == world.text
            assert [CONTENT[named["left content"][at]] for at in places[1:]] == list(world.text[:-1])
        elif isinstance(world, Chart):
            ranked = sorted(world.bars, key=lambda bar: -bar[1])
            for at in counted:
                assert COLOUR[named["colour"][at]] == ranked[named["ordinal"][at] - 1][0]
        elif isinstance(world, Table):
            cells = [at for at in counted if named["left content"][at] and named["above colour"][at]]
            read = {
                (CONTENT[named["left content"][at]], COLOUR[named["above colour"][at]]): CONTENT[named["content"][at]]
                for at in cells
            }
            assert read == {
                (shape, colour): world.cells[r][c]
                for r, shape in enumerate(world.rows)
                for c, colour in enumerate(world.columns)
            }


def test_dense_labels_reach_the_layers_before_their_heads(begun):
    """And not those after: what is far is read after two thirds, what is near after one."""
    architecture, words, model = begun
    heads = readers(12, WIDTH)
    b = talk_batch(random.Random("reach"), words, worlds(2), room=24, **QUIET)
    losses, right = dense_loss(heads, b, hidden_states(model, b, architecture.visual(model, b.pixels)))
    losses.backward()
    assert len(right) == len(LABELS)
    touched = [layer.mlp.down_proj.weight.grad is not None for layer in model.model.language_model.layers]
    assert touched == [True] * 8 + [False] * 4
    model.zero_grad()
    loss, right = talking_loss(architecture, model, heads, b, 0.1)
    loss.backward()
    assert all(layer.mlp.down_proj.weight.grad is not None for layer in model.model.language_model.layers)
    assert len(right) == 1 + len(LABELS)
    model.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_a_graft_given_what_the_earlier_decoder_was_given_answers_as_it(name):
    """Before a step is made the new layers do nothing: the rest is the earlier decoder without the layers left out."""
    architecture = ARCHITECTURES[name]
    words = Words(build_tokenizer(architecture.prompt), architecture.prompt)
    model = architecture.build(words.tokenizer)
    earlier = graft(architecture, model, words.tokenizer, MODELS[name])
    b = talk_batch(random.Random("graft"), words, worlds(2), room=24, **QUIET)
    handed = architecture.visual(earlier, b.pixels)[:1]  # and nothing by DeepStack
    mine = model.lm_head(model.model.language_model.norm(hidden_states(model, b, handed)[-1]))

    stock = AutoModelForImageTextToText.from_pretrained(MODELS[name], dtype=torch.float32).eval()
    decoder = stock.model.language_model
    decoder.layers = torch.nn.ModuleList(decoder.layers[i] for i in architecture.kept)
    old = Words(earlier_tokenizer(name), architecture.prompt).tokenizer.get_vocab()
    new = words.tokenizer.get_vocab()
    known = {new[token]: old[token] for token in new if token in old}
    shared = torch.tensor([int(id) in known for id in b.ids.flatten()]).reshape(b.ids.shape)
    b.ids = torch.tensor([known.get(int(id), 0) for id in b.ids.flatten()]).reshape(b.ids.shape)
    its = stock.lm_head(decoder.norm(hidden_states(stock, b, handed)[-1]))
    # rows that no new word comes before, in the words that both have
    alike = [shared[i, : int((~shared[i]).float().argmax()) or None] for i in range(2)]
    columns = list(known), list(known.values())
    for i, rows in enumerate(alike):
        n = len(rows)
        assert n > VISUAL
        assert torch.allclose(mine[i, :n][:, columns[0]], its[i, :n][:, columns[1]], atol=1e-4)


@pytest.fixture
def hybrid():
    """Qwen3.5 begun from the shipped Qwen3-VL, before its first step; that; and a batch."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES["qwen3_5"]
    words = Words(build_tokenizer(architecture.prompt), architecture.prompt)
    model = architecture.build(words.tokenizer)
    earlier = borrow(model, words.tokenizer, MODELS["qwen3_vl"])
    return architecture, model, earlier, talk_batch(random.Random("hybrid"), words, worlds(2), room=40, **QUIET)


@torch.no_grad()
def test_a_question_behind_others_mixes_as_if_it_stood_alone(hybrid):
    """The state branches where questions begin: against the stock model, on the image and one question."""
    architecture, model, earlier, b = hybrid
    decoder = model.model.language_model
    fit(ARCHITECTURES["qwen3_vl"], model, earlier, b)
    for layer in decoder.layers:
        if is_delta(layer):  # whose convolutions begin as nothing
            layer.linear_attn.conv1d.weight.normal_()
    [image] = architecture.visual(model, b.pixels)
    last = decoder.norm(hidden_states(model, b, [image])[-1])
    for i, turn in ((0, 1), (1, 1), (1, int(b.segments[1].max()))):
        mine = (b.segments[i] == SHARED) | (b.segments[i] == turn)
        embedded = decoder.embed_tokens(b.ids[i][mine][None])
        embedded[0, b.visual_at : b.visual_at + VISUAL] = image[i]
        stock = decoder(inputs_embeds=embedded, position_ids=b.positions[:, i : i + 1, mine], use_cache=False)
        assert torch.allclose(stock.last_hidden_state[0], last[i][mine], atol=1e-4)


@torch.no_grad()
def test_what_a_hybrid_has_in_common_is_borrowed(hybrid):
    """Its layers with attention do what the earlier model's do: half of what is read passes, twice as large."""
    _, model, earlier, b = hybrid
    donor = earlier.model.language_model
    around = surroundings(donor, b, donor.embed_tokens(b.ids))
    x = torch.randn(*b.ids.shape, WIDTH)
    for mine, its in zip(model.model.language_model.layers, donor.layers, strict=True):
        if not is_delta(mine):
            assert torch.allclose(mine(x, **around), its(x, **around), atol=1e-4)
    assert [is_delta(layer) for layer in model.model.language_model.layers] == [True, True, True, False] * 3


def test_delta_rules_learn_what_the_attention_in_whose_place_they_stand_adds(hybrid):
    architecture, model, earlier, b = hybrid
    donor, heads = ARCHITECTURES["qwen3_vl"], readers(12, WIDTH)
    with torch.no_grad():
        _, before = mixing_loss(architecture, donor, model, earlier, heads, b)
        fit(donor, model, earlier, b)
    loss, after = mixing_loss(architecture, donor, model, earlier, heads, b)
    assert (after[:9] > before[:9]).all()
    assert after[:9].min() > 0.1
    loss.backward()
    for layer in model.model.language_model.layers:
        if is_delta(layer):
            assert layer.linear_attn.in_proj_qkv.weight.grad is not None
        assert layer.mlp.down_proj.weight.grad is None


@torch.no_grad()
def test_what_a_graft_is_to_hand_on():
    """Of each thing what the earlier model's tower says of its middle, where it is counted; else an empty image."""
    architecture = ARCHITECTURES["llava"]
    words = Words(build_tokenizer(architecture.prompt), architecture.prompt)
    earlier = AutoModelForImageTextToText.from_pretrained(MODELS["llava"], dtype=torch.float32).eval()
    g = graft_batch(random.Random("handed"), words, 3)
    wanted = given(architecture, earlier, g)
    [image], [blank] = (architecture.visual(earlier, pixels) for pixels in (g.batch.pixels, g.blank))
    counted = g.batch.labels[..., LABELS.index("counted")] == 1
    assert torch.equal(wanted[~counted], blank[~counted])
    for i, at in counted.nonzero().tolist():
        above = [n for n in (at, at - SIDE, at - 2 * SIDE) if n >= 0]
        assert any(torch.equal(wanted[i, at], image[i, n]) for n in above)
    assert (g.batch.pixels - g.blank).abs().amax(1).lt(0.1).float().mean() > 0.5  # most of an image is background


def earlier_tokenizer(name):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODELS[name])


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)])
def test_muon_steps_as_torchs(shape):
    """But for bfloat16, in which torch computes."""
    torch.manual_seed(1)
    start = torch.randn(shape)
    mine, its = (torch.nn.Parameter(start.clone()) for _ in range(2))
    how = {"lr": 0.05, "weight_decay": 0.1}
    steppers = Muon([mine], **how), torch.optim.Muon([its], adjust_lr_fn="match_rms_adamw", **how)
    for _ in range(4):
        grad = torch.randn(shape)
        for p, opt in zip((mine, its), steppers, strict=True):
            p.grad = grad.clone()
            opt.step()
    moved = its - start
    assert (mine - its).norm() < 0.02 * moved.norm()
