"""The shipped models are real: they load with stock classes, see, and without seeing they guess."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from lookless import Loaded, calibrate, evaluate, load_data, v_skip
from lookless.data import Sample, Samples
from lookless.reference import MODELS, TASKS
from lookless.reference.worlds import sample_chart, sample_scene

CLASSES = {"llava": LlavaForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
CARDS = {name: json.loads((folder / "scores.json").read_text()) for name, folder in MODELS.items()}
QUESTIONS = 200
#: A guesser who knows the tasks but not the image: the most common answer of each; the margin is three standard errors.
BLIND = {"existence": 0.5, "attribute": 0.2, "counting": 0.22, "spatial": 0.42, "text": 0.0, "chart": 0.3}
BLIND |= {"relation": 0.15, "comparison": 0.3, "table": 0.1, "listing": 0.0}
MARGIN = 0.11


def load(folder, **how):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **how).eval()


@pytest.fixture(scope="module", params=MODELS)
def shipped(request) -> Loaded:
    """Each shipped model, loaded by stock classes alone."""
    folder = MODELS[request.param]
    return Loaded(load(folder), AutoProcessor.from_pretrained(folder), request.param, None)


def test_loads_with_stock_classes_and_none_of_ours(shipped):
    assert type(shipped.model) is CLASSES[shipped.name]
    assert type(shipped.processor).__module__.startswith("transformers.")
    assert shipped.model.config.text_config.num_hidden_layers >= 12
    [sample] = load_data("reference", limit=1).items
    inputs = shipped.inputs([Sample((sample.images[0].resize((300, 300)),), sample.question, sample.answer)])
    visual = int((inputs["input_ids"] == shipped.model.config.image_token_id).sum())
    assert visual >= 144
    assert visual / inputs["input_ids"].shape[1] > 0.8


@pytest.mark.parametrize("folder", MODELS.values(), ids=MODELS)
def test_is_small(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 30e6


def test_prompts_are_mostly_visual(shipped):
    for sample in load_data("reference", limit=30):
        ids = shipped.inputs([sample])["input_ids"]
        assert (ids == shipped.model.config.image_token_id).float().mean() > 0.8


def test_other_shapes_of_image_are_answered(shipped):
    """Qwen3-VL's tokens follow the image's shape; LLaVA's do not."""
    wide = Sample((Image.new("RGB", (300, 200)),), "how many red objects are there?", "0")
    assert shipped.answer([wide], max_new_tokens=4)


def of_training(shipped):
    from training.architecture import ARCHITECTURES
    from training.tokens import Words

    architecture = ARCHITECTURES[shipped.name]
    return architecture, Words(shipped.processor.tokenizer, architecture.prompt)


@pytest.mark.parametrize("task", ["chart", "spatial"])
def test_prompt_is_what_training_used(shipped, task):
    """Chat template and tokenizer give exactly the sequence that was trained on."""
    from training.batches import talk_batch

    architecture, words = of_training(shipped)
    trained = talk_batch(
        random.Random("prompt"), words, [sample_scene(random.Random(0))], describing=0.0, facts=0.0, stating=0.0
    )
    [sample] = load_data(f"reference:{task}", limit=1).items
    inputs = shipped.inputs([sample])
    prefix = int((trained.segments[0] == 0).sum())
    assert inputs["input_ids"][0, :prefix].tolist() == trained.ids[0, :prefix].tolist()
    asked = words(architecture.prompt.question.format(sample.question))
    assert inputs["input_ids"][0, prefix:].tolist() == asked


@torch.no_grad()
def test_training_computes_what_the_stock_model_computes(shipped):
    """Many questions behind one image, each as if alone: pixels, positions, masks, and which layer is given what."""
    from training.batches import talk_batch
    from training.losses import hidden_states

    architecture, words = of_training(shipped)
    model = load(MODELS[shipped.name], attn_implementation="eager")  # as in training
    b = talk_batch(
        random.Random("stock"),
        words,
        [draw_from(random.Random(0)) for draw_from in (sample_scene, sample_chart)],
        describing=0.0,
        facts=0.0,
        stating=0.0,
    )
    trained = model.lm_head(
        model.model.language_model.norm(hidden_states(model, b, architecture.visual(model, b.pixels))[-1])
    )
    for i in range(2):
        drawn = Image.fromarray((b.pixels[i].permute(1, 2, 0) * 127.5 + 127.5).round().byte().numpy())
        image = dict(shipped.processor.image_processor(drawn, return_tensors="pt"))
        prefix = (b.segments[i] == 0).nonzero()[:, 0]
        for turn in range(1, int(b.segments[i].max()) + 1):
            at = (b.segments[i] == turn).nonzero()[:, 0]
            ids = b.ids[i, torch.cat((prefix, at))][None]
            if "image_grid_thw" in image:
                image["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
            stock = model(input_ids=ids, **image).logits
            assert torch.allclose(stock[0, len(prefix) :], trained[i, at], atol=1e-3)


@pytest.fixture(params=TASKS)
def task(request, shipped) -> str:
    """Each task that the model knows."""
    if request.param not in CARDS[shipped.name]["accuracy"]:
        pytest.skip(f"{shipped.name} was not trained on {request.param}")
    return request.param


@pytest.mark.long
def test_sees(shipped, task):
    """No worse than its card says, on test images, within what so few questions, here and on the card, can tell."""
    result = evaluate(shipped, load_data(f"reference:{task}", limit=QUESTIONS), progress=False)
    accuracy = result.accuracy_dense.value
    card = CARDS[shipped.name]
    stated = card["accuracy"][task]
    error = (max(stated * (1 - stated), 0.01) * (1 / QUESTIONS + 1 / card["questions"])) ** 0.5
    assert accuracy >= stated - 3 * error


@pytest.mark.slow  # what the weights and the questions say, which change seldom
def test_blind_it_guesses(shipped, task):
    """The same questions on noise: nothing in the wording gives the answer away."""
    rng = np.random.default_rng(0)
    seen = load_data(f"reference:{task}", limit=QUESTIONS)
    noise = Samples(
        "noise",
        tuple(
            Sample((Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)),), s.question, s.answer)
            for s in seen
        ),
    )
    assert evaluate(shipped, noise, progress=False).accuracy_dense.value <= BLIND[task] + MARGIN


@pytest.mark.long
def test_most_of_the_answers_survive_a_calibrated_plan(reference):
    """The point of it all, on one task: seven of twelve layers skipped, chosen on other images."""
    scores = calibrate(reference, load_data("reference:attribute", split="calibration", limit=20), progress=False)
    result = evaluate(reference, load_data("reference:attribute", limit=100), v_skip(scores, layers=7), progress=False)
    assert result.retention.value >= 0.9
