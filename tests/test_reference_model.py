"""The shipped model is real: it loads with stock classes, sees, and without seeing it guesses."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from lookless import calibrate, evaluate, load_data, reference, v_skip
from lookless.data import Sample, Samples

CARD = json.loads((reference.MODEL / "scores.json").read_text())
QUESTIONS = 200
#: A guesser who knows the tasks but not the image: the most common answer of each; the margin is three standard errors.
BLIND = {"existence": 0.5, "attribute": 0.2, "counting": 0.22, "spatial": 0.42, "text": 0.0, "chart": 0.3}
MARGIN = 0.11


def test_loads_with_stock_classes_and_none_of_ours():
    model = AutoModelForImageTextToText.from_pretrained(reference.MODEL)
    processor = AutoProcessor.from_pretrained(reference.MODEL)
    assert type(model) is LlavaForConditionalGeneration
    assert isinstance(processor, LlavaProcessor)
    assert model.config.text_config.num_hidden_layers >= 12
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour is the star?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=text, images=Image.new("RGB", (300, 200)), return_tensors="pt")
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert visual >= 144
    assert visual / inputs["input_ids"].shape[1] > 0.8


def test_is_small():
    assert sum(path.stat().st_size for path in reference.MODEL.iterdir()) <= 30e6


def test_prompts_are_mostly_visual(reference):
    for sample in load_data("reference", limit=30):
        ids = reference.inputs([sample])["input_ids"]
        assert (ids == reference.model.config.image_token_id).float().mean() > 0.8


def test_prompt_is_what_training_used(reference):
    """Chat template, tokenizer and image processor give exactly the sequence and the pixels that were trained on."""
    from batches import pixels_of, talk_batch
    from tokens import Words

    words = Words(reference.processor.tokenizer)
    from lookless.reference.questions import pose

    for task in ("chart", "spatial"):
        world, _, _ = pose(task, random.Random("prompt"))
        trained = talk_batch(random.Random("prompt"), words, 1, describing=0.0, facts=0.0, stating=0.0)
        sample = load_data(f"reference:{task}", limit=1).items[0]
        inputs = reference.inputs([sample])
        prefix = trained.visual_at + 144
        assert inputs["input_ids"][0, :prefix].tolist() == trained.ids[0, :prefix].tolist()
        asked = words(f"\n{sample.question} ASSISTANT:")
        assert inputs["input_ids"][0, prefix:].tolist() == asked
        shown = reference.processor.image_processor(reference_image(world), return_tensors="pt")["pixel_values"]
        assert torch.allclose(shown, pixels_of([world]), atol=1e-5)


def reference_image(world):
    from lookless.reference.draw import draw

    return draw(world)


@pytest.mark.long
@pytest.mark.parametrize("task", reference.TASKS)
def test_sees(reference, task):
    """No worse than its card says, on test images, within what 200 questions can tell."""
    result = evaluate(reference, load_data(f"reference:{task}", limit=QUESTIONS), progress=False)
    accuracy = result.accuracy_dense.value
    stated = CARD["accuracy"][task]
    assert accuracy >= stated - 3 * (max(stated * (1 - stated), 0.01) / QUESTIONS) ** 0.5


@pytest.mark.long
@pytest.mark.parametrize("task", reference.TASKS)
def test_blind_it_guesses(reference, task):
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
    assert evaluate(reference, noise, progress=False).accuracy_dense.value <= BLIND[task] + MARGIN


@pytest.mark.long
def test_most_of_the_answers_survive_a_calibrated_plan(reference):
    """The point of it all, on one task: seven of twelve layers skipped, chosen on other images."""
    scores = calibrate(reference, load_data("reference:attribute", split="calibration", limit=20), progress=False)
    result = evaluate(reference, load_data("reference:attribute", limit=100), v_skip(scores, layers=4), progress=False)
    assert result.retention.value >= 0.9
