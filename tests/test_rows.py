"""Row sets by themselves: which rows, gathered, scattered, and attended from, against attention written out in full."""

from __future__ import annotations

import pytest
import torch

from lookless import Window
from lookless.layer_plan import LIVE, TEXT, VISUAL
from lookless.runtime.calls import FEW, attend, causal_calls, padded_mask, scaled_dot_product, window_calls
from lookless.runtime.prompts import Prompts
from lookless.runtime.rows import runs_of

HEADS, WIDTH = 2, 4

LAYOUTS = {
    "one image": ["tttvvvvtt"],
    "image first": ["vvvvttt"],
    "image last": ["tttvvvv"],
    "two images": ["ttvvtvvvt"],
    "many images": ["tvtvtvtvtvtvtvtvtvt"],
    "batch alike": ["ttvvvt", "ttvvvt"],
    "other positions": ["ttvvvt", "tvvvtt"],
    "padded left": ["pptvvt", "ttvvtt"],
    "padded right": ["tvvtpp", "ttvvtt"],
    "padded alike": ["ptvvt", "ptvvt"],
    "one without": ["tttttt", "ttvvtt"],
    "all image": ["vvvv"],
    "scattered": ["tvpvvptvpvvt", "vppvpvvpvptt"],
}

#: as in a plan, by name
SETS = {"text": TEXT, "visual": VISUAL, "live": LIVE}


def prompts_of(layout):
    visual = torch.tensor([[c == "v" for c in p] for p in layout])
    real = torch.tensor([[c != "p" for c in p] for p in layout])
    return Prompts(visual, real)


def wanted(layout, kind):
    kinds = {"text": "t", "visual": "v", "live": "tv"}[kind]
    return torch.tensor([[c in kinds for c in p] for p in layout])


@pytest.mark.parametrize("kind", ["text", "visual", "live"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_are_gathered_and_scattered(layout, kind):
    rows, mask = prompts_of(layout).rows(SETS[kind]), wanted(layout, kind)
    x = torch.randn(len(layout), len(layout[0]), 3)
    compact = rows.gather(x)
    assert rows.count == int(mask.sum())
    assert torch.equal(compact.reshape(-1, 3), x[mask])
    before = x.clone()
    added = rows.scatter_add(x, compact)
    assert torch.equal(x, before)
    assert torch.equal(added, torch.where(mask[..., None], 2 * x, x))
    assert torch.equal(rows.scatter(x, 3 * compact), torch.where(mask[..., None], 3 * x, x))
    assert torch.equal(rows.to_sequences(compact)[mask], x[mask])  # what stands elsewhere nobody reads
    one = torch.randn(1, len(layout[0]), 3)  # rotary embeddings may be one for all prompts
    assert torch.equal(rows.gather(one).expand(*compact.shape), rows.gather(one.expand_as(x)))
    if rows.count:
        padded, positions = rows.pad(compact), rows.positions.expand(len(layout), -1)
        assert torch.equal(rows.unpad(padded), compact)
        for b, prompt in enumerate(positions.tolist()):
            assert [p for p in prompt if p >= 0] == mask[b].nonzero().flatten().tolist()
            for slot, place in enumerate(prompt):
                assert place < 0 or torch.equal(padded[b, slot], x[b, place])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_within_rows(layout):
    prompts = prompts_of(layout)
    x = torch.randn(len(layout), len(layout[0]), 3)
    live = prompts.rows(LIVE)
    for kind in ("text", "visual", "live"):
        rows = prompts.rows(SETS[kind])
        assert torch.equal(rows.within(live).gather(live.gather(x)), rows.gather(x))


def test_what_is_whole_is_not_copied():
    x = torch.randn(2, 6, 3)
    assert prompts_of(["ttvvvt", "ttvvvt"]).rows(LIVE).gather(x) is x
    assert not prompts_of(["ptvvvt", "ttvvvt"]).rows(LIVE).is_whole


def test_an_image_that_is_masked_is_padding():
    """Visual tokens that the attention mask hides are no rows."""
    visual = torch.tensor([[False, True, True, False]])
    prompts = Prompts(visual, torch.tensor([[True, True, False, True]]))
    assert prompts.alive[0].tolist() == [1]
    assert prompts.counts == (1,)
    assert prompts.rows(LIVE).prompts[0].tolist() == [0, 1, 3]


def written_out(q, k, v, allowed):
    """Softmax attention ``[batch, rows, head * width]`` of every row, by its definition."""
    scores = torch.einsum("bnhd,bkhd->bhnk", q, k) * WIDTH**-0.5
    weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhnk,bkhd->bnhd", weights, v).flatten(2)


def random_heads(layout):
    torch.manual_seed(0)
    return (torch.randn(len(layout), len(layout[0]), HEADS, WIDTH) for _ in range(3))


@pytest.mark.parametrize("heads", [1, 2 * FEW], ids=["together", "apart"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_causal_attention(layout, heads):
    q, k, v = random_heads(layout)
    prompts, n = prompts_of(layout), len(layout[0])
    causal = torch.ones(n, n, dtype=torch.bool).tril() & wanted(layout, "live")[:, None, :]
    live = prompts.rows(LIVE)
    for kind in ("text", "live"):
        rows = prompts.rows(SETS[kind])
        if not rows.count:
            continue
        calls = causal_calls(rows, live, heads=heads)
        out = attend(rows.gather(q), live.gather(k), live.gather(v), calls, WIDTH**-0.5)
        expected = rows.gather(written_out(q, k, v, causal | torch.eye(n, dtype=torch.bool)))
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("heads", "calls"), [(FEW // 18, 1), (FEW // 18 + 1, 2)])
def test_runs_share_a_call_that_scores_few_keys_for_nothing(heads, calls):
    """Three rows before the image score six keys after them: with their own call they need none of these."""
    prompts = prompts_of(["tttvvvvtt"])
    assert len(causal_calls(prompts.rows(TEXT), prompts.rows(LIVE), heads=heads)) == calls


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_attention_of_all_prompts_at_once(layout, whole):
    """Over rectangles of rows, or over whole sequences as a cache holds them."""
    q, k, v = random_heads(layout)
    prompts, n = prompts_of(layout), len(layout[0])
    causal = torch.ones(n, n, dtype=torch.bool).tril() & wanted(layout, "live")[:, None, :]
    live = prompts.rows(LIVE)
    for kind in ("text", "live"):
        rows = prompts.rows(SETS[kind])
        if not (rows.count and rows.packed):
            continue
        positions = torch.arange(n)[None] if whole else live.positions
        keys, values = ((live.to_sequences if whole else live.pad)(live.gather(x)).transpose(1, 2) for x in (k, v))
        mask = padded_mask(rows, live, positions, torch.float32)
        queries = rows.pad(rows.gather(q)).transpose(1, 2)
        out = scaled_dot_product(queries, keys, values, mask, WIDTH**-0.5).transpose(1, 2).flatten(2)
        assert out.isfinite().all()  # fillers too, or gradients would not be
        expected = rows.gather(written_out(q, k, v, causal | torch.eye(n, dtype=torch.bool)))
        torch.testing.assert_close(rows.unpad(out), expected)


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_windows(layout, size):
    q, k, v = random_heads(layout)
    prompts, n = prompts_of(layout), len(layout[0])
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    near = (i - j < size) | ~wanted(layout, "visual")[:, None, :]
    allowed = (j <= i) & near & wanted(layout, "live")[:, None, :]
    visual, live = prompts.rows(VISUAL), prompts.rows(LIVE)
    if visual.count:
        calls = window_calls(visual, live, prompts.visual, Window(size).blocks, size)
        out = attend(visual.gather(q), live.gather(k), live.gather(v), calls, WIDTH**-0.5)
        torch.testing.assert_close(out, visual.gather(written_out(q, k, v, allowed | torch.eye(n, dtype=torch.bool))))


def test_a_windowed_query_scores_no_key_far_outside():
    """1000 visual tokens in a window of 64: blocks of 16 queries see 79 visual keys and the 5 text keys before them."""
    layout = ["t" * 5 + "v" * 1000 + "ttt"]
    prompts = prompts_of(layout)
    calls = window_calls(prompts.rows(VISUAL), prompts.rows(LIVE), prompts.visual, Window(64).blocks, 64)
    assert max(call.mask.shape[1] for call in calls) == 5 + 64 + 16 - 1
    assert sum(call.mask.numel() for call in calls) < 1000 * (5 + 64 + 16)


def test_runs():
    assert runs_of([]) == []
    assert runs_of([3]) == [(3, 4)]
    assert runs_of([0, 1, 2, 5, 7, 8]) == [(0, 3), (5, 6), (7, 9)]
