"""The sweep with prefix reuse is the naive L + 1 full passes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from helpers.compare import needs
from helpers.families import FAMILIES
from helpers.loaded import PIXEL, TinyLoaded, samples_of, tiny_loaded
from helpers.models import BATCHES, IMAGE, LAYERS, tiny_llava
from helpers.slow_hooks import slow
from helpers.slow_reference import slow_logits
from lookless import (
    LayerPlan,
    Plan,
    Skip,
    Window,
    apply,
    calibrate,
    data,
    evaluate,
    load_data,
    methods,
    screen,
    sweep,
)
from lookless.bench.timing import time_prefill
from lookless.calibration.distances import kl
from lookless.calibration.gradients import diagnose
from lookless.calibration.sweep import INTERVENTIONS
from lookless.errors import DataError, ModelError, ScoresError
from lookless.runtime.families import geometry_of
from lookless.search import Objective


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


@pytest.mark.parametrize("cells", [LayerPlan(attention=Skip()), LayerPlan(attention=Skip(), ffn=Skip())])
def test_sweep_is_the_naive_passes(cells):
    loaded = tiny_loaded()
    names = ("one image", "two images", "image first")
    samples = samples_of(*names)
    scores = sweep(loaded, samples, cells, name="effect", progress=False)
    assert scores.geometry == geometry_of(loaded.model)
    for name, row in zip(names, scores.per_sample, strict=True):
        arguments = BATCHES[name]()
        n = arguments["input_ids"].shape[1]
        expected = naive(loaded.model, arguments, cells, slice(n - 1, n))
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert max(scores.mean) > 1e-3
    tokens = [BATCHES[name]()["input_ids"] for name in names]
    assert scores.visual == pytest.approx(sum(int((ids == IMAGE).sum()) for ids in tokens) / 3)
    assert scores.visual + scores.text == pytest.approx(sum(ids.shape[1] for ids in tokens) / 3)
    if cells.ffn != Skip():
        # Nobody reads what visual rows do in the last layer: only rounding is left of it, as fewer rows are multiplied.
        assert scores.mean[-1] == pytest.approx(0, abs=1e-6)


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
@pytest.mark.parametrize("measure", INTERVENTIONS)
@torch.no_grad()
def test_every_measure_on_every_family(name, measure):
    """A run from the middle is the whole run, also where features are added between layers (DeepStack)."""
    family, model = FAMILIES[name], FAMILIES[name].build()
    arguments = family.batch("one image")
    cells = INTERVENTIONS[measure].cells
    if measure == "window_effect":  # wider than these prompts
        cells = LayerPlan(attention=Window(4))
    samples = data.Samples("tiny", (data.Sample((PIXEL,), "q", ""),))
    loaded = SimpleNamespace(model=model, name=name, revision=None, inputs=lambda _: dict(arguments))
    for layer in range(LAYERS):
        needs(model, Plan.full(LAYERS).at([layer], **dict(cells)))
    scores = sweep(loaded, samples, cells, name=measure, distance=INTERVENTIONS[measure].distance, progress=False)
    stock = model(**arguments).logits[0, -1].float()
    for layer, score in enumerate(scores.mean):
        plan = Plan.full(geometry_of(model)).at([layer], **dict(cells))
        changed = slow_logits(model, plan, arguments, family.visual_ids)[0, -1].float()
        assert score == pytest.approx(INTERVENTIONS[measure].distance(stock, changed).item(), rel=2e-3, abs=2e-6)
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


IMAGES = samples_of("one image", "two images")

STOCK = {
    "calibrate": lambda loaded: calibrate(loaded, IMAGES, progress=False),
    "sweep": lambda loaded: sweep(loaded, IMAGES, LayerPlan(ffn=Skip()), name="mine", progress=False),
    "diagnose": lambda loaded: diagnose(loaded, IMAGES, progress=False),
    "screen": lambda loaded: screen(loaded, IMAGES, {"ffn_effect": 2}, progress=False),
    "Objective": lambda loaded: Objective(loaded, IMAGES, progress=False),
}


@pytest.mark.parametrize("call", STOCK.values(), ids=STOCK)
def test_the_stock_model_is_measured_or_nothing_is(call):
    """Under a plan every one of them measured the plan's model and called it the full one."""
    loaded = tiny_loaded()
    with (
        apply(loaded.model, Plan.full(geometry_of(loaded.model)).at([1], attention=Skip())),
        pytest.raises(ModelError, match=r"^a plan is already applied .* the stock model: call remove\(\)[^.]*\.$"),
    ):
        call(loaded)
    call(loaded)  # and behind it, it is the stock model again
    with apply(loaded.model, Plan.full(geometry_of(loaded.model))):  # which touches nothing
        call(loaded)


def test_dense_answers_and_times_are_the_stock_models(reference):
    samples = load_data("reference:chart", split="test", limit=1)
    with apply(reference.model, Plan.full(12).at([1], attention=Skip())):
        with pytest.raises(ModelError, match="a plan is already applied"):
            evaluate(reference, samples, progress=False)
        with pytest.raises(ModelError, match="a plan is already applied"):
            time_prefill(reference, reference.inputs(samples.items), [None], repeats=1)


class Broken(TinyLoaded):
    """Of the second sample the image is infinite, and nothing behind it is a number."""

    def inputs(self, samples):
        arguments = super().inputs(samples)
        if samples[0].question == "two images":
            arguments["pixel_values"] = arguments["pixel_values"] * torch.inf
        return arguments


@pytest.mark.parametrize("call", STOCK.values(), ids=STOCK)
def test_logits_that_are_not_finite_are_named(call):
    broken = Broken(model=tiny_llava(), name="tiny", revision=None)
    with pytest.raises(ModelError, match=r"^the full model gives logits that are not .* sample 1 of tiny \('two"):
        call(broken)


def test_a_changed_layer_that_overflows_is_named():
    """The full model is whole, and one run of the sweep is not."""
    loaded, runs = tiny_loaded(), []

    def overflow(_, __, logits):
        runs.append(1)
        return logits if len(runs) < 4 else logits * torch.inf  # the full run, and those of layers 0 and 1

    loaded.model.get_output_embeddings().register_forward_hook(overflow)
    with pytest.raises(ModelError, match=r"the model with layer 2 changed gives logits .* for sample 0 of tiny"):
        calibrate(loaded, IMAGES, progress=False)


def test_answers_that_are_no_numbers_are_refused(reference):
    """Greedy decoding takes the largest of numbers that are none, and says nothing."""
    samples = load_data("reference:chart", split="test", limit=3)
    hook = reference.model.get_output_embeddings().register_forward_hook(
        lambda _, __, out: out.index_fill(0, torch.tensor([1]), torch.nan)
    )
    question = samples.items[1].question[:20]
    with pytest.raises(ModelError, match="gives logits that are not finite") as caught:
        evaluate(reference, samples, progress=False)
    hook.remove()
    assert question in str(caught.value)
    assert evaluate(reference, samples, progress=False).samples == 3


def test_an_answer_with_the_token_of_an_image_is_refused(reference, monkeypatch):
    """Its model would look for another image, and transformers stops with numbers that say nothing to a user."""
    image = reference.model.config.image_token_id

    def generate(input_ids, **_):
        return torch.nn.functional.pad(input_ids, (0, 1), value=image)

    monkeypatch.setattr(reference.model, "generate", generate)
    samples = load_data("reference:chart", limit=1)
    with pytest.raises(ModelError, match=r"reference answers sample 0 of .* with the token of an image"):
        calibrate(reference, samples, position="answer", progress=False)


@pytest.mark.parametrize("turning", range(4))
def test_the_layer_that_turns_most_is_not_skipped(turning):
    """Measure and method together, for both cosines: one layer has an update far larger than the others'."""
    loaded = tiny_loaded()
    layers = loaded.model.model.language_model.layers
    with torch.no_grad():
        for index, layer in enumerate(layers):
            for weight in (layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight):
                weight.mul_(30.0 if index == turning else 0.05)
    scores = diagnose(loaded, IMAGES, progress=False)["state_cosine"]
    plan = methods.state_cosine(scores, layers=len(layers) - 1)
    assert plan.skipped("attention") == plan.skipped("ffn") == tuple(i for i in range(len(layers)) if i != turning)


def test_the_layer_whose_skip_turns_the_logits_most_is_not_skipped():
    """V-Skip's CosSim, against passes that share nothing; a cosine of log-probabilities would be another number."""
    loaded = tiny_loaded()
    layers = len(loaded.model.model.language_model.layers)
    scores = calibrate(loaded, IMAGES, measure="logit_cosine", progress=False)
    assert scores.unit == "1 - cos"
    for sample, row in zip(IMAGES, scores.per_sample, strict=True):
        arguments = BATCHES[sample.question]()
        with torch.no_grad():
            stock = loaded.model(**arguments).logits[0, -1].double()
            for layer, score in enumerate(row):
                with slow(loaded.model, Plan.full(layers).at([layer], attention=Skip())):
                    changed = loaded.model(**arguments).logits[0, -1].double()
                expected = 1 - float(stock @ changed / stock.norm() / changed.norm())
                assert score == pytest.approx(expected, rel=1e-3, abs=1e-9)
    most = max(range(layers), key=scores.mean.__getitem__)
    assert scores.mean[most] > 1e-5
    skipped = methods.logit_cosine(scores, layers=layers - 1).skipped("attention")
    assert {*range(layers)} - {*skipped} == {most}
