"""The shipped models' decoders have to look, and at the right depth: what plans take from them shows in their answers.

Fewer questions and draws than docs/reference_model.md has, so the figures differ from those there by some points. Every
test prints its figures beside their targets (``pytest -rP``).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from lookless import Loaded, load_model
from lookless.reference import NAMES, tasks_of
from training.needs import FEWER, Examined, Needs, Target, edits, targets

QUESTIONS, IMAGES, DRAWS = 40, 5, 10
#: Draws are many plans: tasks of every kind of image, that lose little and much without visual attention.
FEW = ("attribute", "spatial", "text", "chart", "table")


@pytest.fixture(scope="module", params=NAMES)
def loaded(request) -> Loaded:
    return load_model(request.param)


@pytest.fixture(scope="module")
def needs(loaded) -> Needs:
    model = Examined(loaded, tasks_of(loaded.name), QUESTIONS)
    return Needs(
        accuracy=model.accuracy,
        kept={name: model.kept(plan) for name, plan in edits(model.layers).items()},
        divergence={"attention": model.divergence("attention", IMAGES)},
    )


@pytest.fixture(scope="module")
def few(loaded) -> Examined:
    return Examined(loaded, FEW, QUESTIONS // 2 * FEWER)


#: The bound that a model keeps where it misses the target (docs/reference_model.md), or where so few questions come too
#: near to the target to be sure of it on another CPU.
LOOSER: dict[str, dict[str, dict[str, float]]] = {
    "reference": {"kept without visual attention in the last third": {"least": 0.96}},
    "reference-qwen3-vl": {"kept without both": {"most": 0.45}},
}


def check(loaded: Loaded, found: list[Target]) -> None:
    assert found
    print(*found, sep="\n")
    looser = LOOSER[loaded.name]
    bounds = [replace(target, **looser.get(target.what, {})) for target in found]
    assert not [str(target) for target in bounds if not target.is_met]


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["kept", "information gain"])
def test_it_needs_its_visual_work_and_needs_it_early(loaded, needs, figure):
    check(loaded, [target for target in targets(needs) if target.what.startswith(figure)])


@pytest.mark.slow
@pytest.mark.parametrize("count", [7, 8, 9])
def test_chosen_layers_beat_random_ones(loaded, few, needs, count):
    found = few.chosen_layers(needs.by_layer("attention"), count, DRAWS)
    check(loaded, [Target(f"chosen minus random layers, {count} skipped, low end", found.low, least=0)])


@pytest.mark.slow
def test_attended_tokens_beat_random_ones(loaded, few):
    found = few.chosen_tokens(0.25, few.layers // 2)
    check(loaded, [Target("FastV's minus random tokens, low end", found.low, least=0)])
