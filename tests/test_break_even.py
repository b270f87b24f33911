"""From how many visual tokens on a plan pays: measured, remembered, and used."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.models import BATCHES, IMAGE, tiny_llava
from helpers.plans import SKIPPED
from lookless import apply
from lookless.errors import LooklessError
from lookless.runtime import break_even
from lookless.runtime.break_even import SIZES, smallest_that_pays


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("pays", SIZES)
def test_it_is_the_first_size_that_pays(pays):
    asked = []

    def share(visual: int, until: float) -> float:
        asked.append(visual)
        return 0.9 if visual >= pays else 1.1

    assert smallest_that_pays(share) == pays
    assert asked == [size for size in SIZES if size <= pays]


def test_where_none_pays_it_is_beyond_all():
    assert smallest_that_pays(lambda *_: 1.0) == 2 * SIZES[-1]


def test_when_time_is_over_it_is_the_next_size():
    """On a large model even a small prompt takes longer than the time there is: one is tried, and no more."""
    assert smallest_that_pays(lambda *_: 1.0, seconds=0) == SIZES[1]
    assert smallest_that_pays(lambda *_: 0.5, seconds=0) == SIZES[0]


@torch.no_grad()
@pytest.mark.parametrize("found", [1, 10_000])
def test_calls_under_it_are_the_stock_model(monkeypatch, found):
    monkeypatch.setattr(break_even, "smallest_that_pays", lambda _: found)
    model, arguments = tiny_llava("clip-mistral"), BATCHES["one image"]()
    stock, plan = model(**arguments).logits, SKIPPED["everything"]
    visual = int((arguments["input_ids"] == IMAGE).sum())
    with apply(model, plan, break_even="auto") as handle:
        assert handle.break_even == found
        assert torch.equal(model(**arguments).logits, stock) == (visual < found)


def test_it_is_measured_on_the_model_and_once(monkeypatch, cache):
    """The plan and the stock model both run, on as many rows as there are visual tokens and text."""
    model, plan, seen = tiny_llava("clip-mistral"), SKIPPED["everything"], []
    model.model.language_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    monkeypatch.setattr(break_even, "SIZES", (8, 16))
    monkeypatch.setattr(break_even, "SECONDS", 0.2)
    with apply(model, plan, break_even="auto") as handle:
        first = handle.break_even
    before, after = break_even.TEXT
    assert {rows - before - after for rows in seen} <= {8, 16}
    assert len(seen) >= 2
    assert len(seen) % 2 == 0
    seen.clear()
    with apply(model, plan, break_even="auto") as handle:
        assert handle.break_even == first
    assert not seen
    with apply(model, SKIPPED["mixed"], break_even="auto"):  # another plan is another question
        assert seen
    assert len(list((cache / "lookless" / "break_even").iterdir())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"visual_tokens": "8"}', '{"visual_tokens": -1}', "{"])
def test_a_broken_file_is_measured_anew(monkeypatch, cache, text):
    monkeypatch.setattr(break_even, "smallest_that_pays", lambda _: 77)
    model, plan = tiny_llava("clip-mistral"), SKIPPED["everything"]
    apply(model, plan, break_even="auto").remove()
    [path] = (cache / "lookless" / "break_even").iterdir()
    path.write_text(text)
    with apply(model, plan, break_even="auto") as handle:
        assert handle.break_even == 77
    assert json.loads(path.read_text())["visual_tokens"] == 77


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, cache):
    monkeypatch.setattr(break_even, "smallest_that_pays", lambda _: 77)
    (cache / "lookless").write_text("a file where the folder should be")
    with apply(tiny_llava("clip-mistral"), SKIPPED["everything"], break_even="auto") as handle:
        assert handle.break_even == 77


def test_a_failure_while_measuring_leaves_the_model_as_it_was(monkeypatch):
    def fails(_: object) -> int:
        raise RuntimeError("no memory")

    monkeypatch.setattr(break_even, "smallest_that_pays", fails)
    model = tiny_llava("clip-mistral")
    with pytest.raises(RuntimeError):
        apply(model, SKIPPED["everything"], break_even="auto")
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("given", ["fast", -1, 1.5, None, True])
def test_what_is_no_number_of_tokens_is_refused(given):
    with pytest.raises(LooklessError, match="break_even"):
        apply(tiny_llava("clip-mistral"), SKIPPED["everything"], break_even=given)
