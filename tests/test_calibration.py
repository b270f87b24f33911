"""The sweep with prefix reuse is the naive L + 1 full passes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from families import FAMILIES
from lookless import LayerPlan, Plan, Skip, Window, calibrate, data, load_data, sweep
from lookless.calibration import MEASURES, kl
from lookless.errors import DataError, ScoresError
from lookless.models import geometry_of
from maps import slow_logits
from slow import slow
from tiny import BATCHES, tiny_llava


class TinyLoaded(SimpleNamespace):
    """As ``Loaded``, over a tiny random model: a sample's question names a batch of tests/tiny.py."""

    def inputs(self, samples):
        return BATCHES[samples[0].question]()


def tiny_loaded():
    return TinyLoaded(model=tiny_llava(), name="tiny", revision=None)


def naive(model, arguments, cells, read):
    """L + 1 full passes, the slow way."""
    with torch.no_grad():
        full = torch.log_softmax(model(**arguments).logits[0, read].float(), -1)
        scores = []
        layers = model.config.get_text_config().num_hidden_layers
        for layer in range(layers):
            plan = Plan.full(layers).at([layer], attention=cells.attention, ffn=cells.ffn)
            with slow(model, plan):
                skipped = torch.log_softmax(model(**arguments).logits[0, read].float(), -1)
            scores.append(torch.nn.functional.kl_div(skipped, full, reduction="sum", log_target=True).item())
    return [s / (read.stop - read.start) for s in scores]


PIXEL = data.Image.new("RGB", (4, 4))


@pytest.mark.parametrize("cells", [LayerPlan(attention=Skip()), LayerPlan(attention=Skip(), ffn=Skip())])
def test_sweep_is_the_naive_passes(cells):
    loaded = tiny_loaded()
    names = ("one image", "two images", "image first")
    samples = data.Samples("tiny", tuple(data.Sample((PIXEL,), n, "") for n in names))
    scores = sweep(loaded, samples, cells, name="effect", progress=False)
    assert scores.geometry == geometry_of(loaded.model)
    for name, row in zip(names, scores.per_sample, strict=True):
        arguments = BATCHES[name]()
        n = arguments["input_ids"].shape[1]
        expected = naive(loaded.model, arguments, cells, slice(n - 1, n))
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert max(scores.mean) > 1e-3
    if cells.ffn != Skip():
        # Nobody reads what visual rows do in the last layer: only rounding is left of it, as fewer rows are multiplied.
        assert scores.mean[-1] == pytest.approx(0, abs=1e-7)


def test_vig_on_the_reference_model_is_the_naive_passes(reference):
    """Both places where the distribution can be read, on a trained model, against passes that share nothing."""
    samples = load_data("reference:text", split="calibration", limit=2)
    last = calibrate(reference, samples, progress=False)
    answer = calibrate(reference, samples, position="answer", progress=False)
    skip = LayerPlan(attention=Skip())
    assert last.position == "last"
    assert answer.position == "answer"
    for i, sample in enumerate(samples):
        arguments = reference.inputs([sample])
        n = arguments["input_ids"].shape[1]
        assert last.per_sample[i] == pytest.approx(naive(reference.model, arguments, skip, slice(n - 1, n)), abs=1e-5)
        with torch.no_grad():
            ids = reference.model.generate(**arguments, max_new_tokens=32, do_sample=False)
        longer = {**arguments, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        read = slice(n - 1, ids.shape[1] - 1)
        assert read.stop - read.start >= 3  # two characters and the end, at least
        assert answer.per_sample[i] == pytest.approx(naive(reference.model, longer, skip, read), abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("measure", MEASURES)
@torch.no_grad()
def test_every_measure_on_every_family(name, measure):
    """A run from the middle is the whole run, also where features are added between layers (DeepStack)."""
    family, model = FAMILIES[name], FAMILIES[name].build()
    arguments = family.batch("one image")
    cells = MEASURES[measure].cells
    if measure == "window_effect":  # wider than these prompts
        cells = LayerPlan(attention=Window(4))
    samples = data.Samples("tiny", (data.Sample((PIXEL,), "q", ""),))
    loaded = SimpleNamespace(model=model, name=name, revision=None, inputs=lambda _: dict(arguments))
    scores = sweep(loaded, samples, cells, name=measure, distance=MEASURES[measure].distance, progress=False)
    stock = torch.log_softmax(model(**arguments).logits[0, -1].float(), -1)
    for layer, score in enumerate(scores.mean):
        plan = Plan.full(geometry_of(model)).at([layer], **dict(cells))
        slow = slow_logits(model, plan, arguments, family.visual_ids)[0, -1]
        changed = torch.log_softmax(slow.float(), -1)
        assert score == pytest.approx(MEASURES[measure].distance(stock, changed).item(), rel=2e-3, abs=2e-6)
    assert max(scores.mean) > 1e-5


def test_an_unknown_measure_is_refused():
    with pytest.raises(ScoresError, match="no measure is called 'vibes'; choose one of visual_information_gain"):
        calibrate(tiny_loaded(), data.Samples("s", ()), measure="vibes")


def test_kl_has_the_papers_direction():
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl(p, q).item() == pytest.approx(0.9 * torch.tensor(1.8).log().item() + 0.1 * torch.tensor(0.2).log().item())
    assert kl(p, q).item() != pytest.approx(kl(q, p).item())
    assert kl(p, p).item() == 0.0


def test_no_image_anywhere_is_refused():
    samples = data.Samples("words", (data.Sample((), "hello", ""), data.Sample((), "there", "")))
    with pytest.raises(DataError, match="none of the 2 samples of words has an image"):
        calibrate(tiny_loaded(), samples, progress=False)


def test_a_processor_that_puts_no_visual_token_is_refused():
    class Blind(TinyLoaded):
        def inputs(self, samples):
            return {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}

    loaded = Blind(model=tiny_llava(), name="blind", revision=None)
    with pytest.raises(DataError, match="put no visual token"):
        calibrate(loaded, data.Samples("s", (data.Sample((PIXEL,), "q", ""),)), progress=False)
