"""Row sets by themselves: which rows, taken out, put back, and attended from, against attention written out in full."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lookless.rows import Gathered, Runs, text_rows

HEADS, WIDTH = 2, 4
MODULE = SimpleNamespace(scaling=WIDTH**-0.5)


def sdpa(_, q, k, v, mask, dropout=0.0, scaling=None):
    """The interface of Hugging Face's attention functions, over PyTorch's."""
    causal = mask is None and q.shape[2] > 1
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling)
    return out.transpose(1, 2), None


def written_out(q, k, v, allowed):
    """Softmax attention ``[batch, rows, head * width]`` of every row, by its definition."""
    scores = torch.einsum("bnhd,bhkd->bhnk", q, k) * MODULE.scaling
    weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhnk,bhkd->bnhd", weights, v).flatten(2)


LAYOUTS = {
    "one image": ["tttvvvvtt"],
    "image first": ["vvvvttt"],
    "image last": ["tttvvvv"],
    "two images": ["ttvvtvvvt"],
    "batch alike": ["ttvvvt", "ttvvvt"],
    "other places": ["ttvvvt", "tvvvtt"],
    "padded left": ["pptvvt", "ttvvtt"],
    "padded right": ["tvvtpp", "ttvvtt"],
    "one without": ["tttttt", "ttvvtt"],
    "all image": ["vvvv"],
}


def layout(prompts):
    visual = torch.tensor([[c == "v" for c in p] for p in prompts])
    real = torch.tensor([[c != "p" for c in p] for p in prompts])
    return visual, real


@pytest.mark.parametrize(("masked", "past", "spare"), [(False, 0, 0), (False, 0, 5), (True, 0, 0), (True, 3, 0)])
@pytest.mark.parametrize("prompts", LAYOUTS.values(), ids=LAYOUTS)
def test_attention_of_text_rows(prompts, masked, past, spare):
    """``past`` keys stand in a warm cache before the prompt, ``spare`` empty places of a static one behind it."""
    visual, real = layout(prompts)
    if not masked and not real.all():
        pytest.skip("the stock model always gives a mask where there is padding")
    rows = text_rows(visual, real)
    batch, n = visual.shape
    torch.manual_seed(0)
    q = torch.randn(batch, n, HEADS, WIDTH)
    k, v = torch.randn(2, batch, HEADS, past + n + spare, WIDTH).unbind()
    seen = torch.arange(past + n + spare)[None, :] <= past + torch.arange(n)[:, None]
    places = [torch.ones(batch, past, dtype=torch.bool), real, torch.zeros(batch, spare, dtype=torch.bool)]
    keys_real = torch.cat(places, dim=1)
    allowed = seen[None] & (keys_real[:, None, :] | ~real[:, :, None])
    text = ~visual & real
    if not text.any():
        assert rows.count == 0
        return
    mask = allowed[:, None] if masked else None
    out = rows.attend(sdpa, MODULE, rows.take(q), k, v, mask)
    put = rows.add(torch.zeros(batch, n, HEADS * WIDTH), out)
    expected = written_out(q, k, v, allowed)
    assert torch.allclose(put[text], expected[text], atol=1e-6)
    assert (put[~text] == 0).all()
    again = rows.attend(sdpa, MODULE, rows.take(q), k, v, mask)  # masks are remembered between layers
    assert torch.equal(out, again)


@pytest.mark.parametrize("prompts", LAYOUTS.values(), ids=LAYOUTS)
def test_take_and_add(prompts):
    visual, real = layout(prompts)
    rows = text_rows(visual, real)
    text = ~visual & real
    x = torch.randn(*visual.shape, 5)
    assert rows.count == int(text.sum())
    if not rows.count:
        return
    assert torch.equal(rows.take(x).reshape(-1, 5), x[text])
    before = x.clone()
    added = rows.add(x, rows.take(torch.ones_like(x)))
    assert torch.equal(x, before)
    assert torch.equal(added, x + text[..., None])


def test_kinds():
    """Slices where prompts are alike, gathers where they are not, nothing where nothing is visual."""
    assert text_rows(*layout(["ttt"])) is None
    assert text_rows(*layout(["ttvvtvt"])).spans == ((0, 2), (4, 5), (6, 7))
    assert isinstance(text_rows(*layout(["tvt", "tvt"])), Runs)
    assert isinstance(text_rows(*layout(["tvt", "vtt"])), Gathered)
    assert isinstance(text_rows(*layout(["ptv"])), Gathered)
    assert isinstance(text_rows(layout(["tvt"])[0], None), Runs)


def test_rows_of_a_broadcast_tensor():
    """Rotary tables have one row of the batch where positions are alike."""
    x = torch.randn(1, 6, 3)
    for prompts in (["ttvvvt", "ttvvvt"], ["ttvvvt", "tvvvtt"]):
        visual, real = layout(prompts)
        rows = text_rows(visual, real)
        wide = rows.take(x.expand(2, -1, -1)).reshape(-1, 3)
        narrow = rows.take(x)
        assert torch.equal(narrow.expand(2, -1, -1).reshape(-1, 3) if narrow.ndim == 3 else narrow, wide)
