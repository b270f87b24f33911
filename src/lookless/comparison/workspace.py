"""One model's calibration, dense answers and prices, made once and kept between methods."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import flops
from ..answers import scored_by
from ..calibration.gradients import scores_by_name
from ..calibration.sweep import sweep
from ..cells import Window
from ..certification.independent import one_by_one
from ..data import AS_IS, Reading, Samples, warn_of_skipped
from ..evaluation import evaluate
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..methods.redundancylens import PAPER_WINDOW, window_at
from ..plan import Plan
from ..runtime.families import geometry_of, locate
from ..runtime.patching import apply
from ..runtime.prompts import prompts_of
from ..runtime.tracing import trace
from ..scores import Scores
from ..search.objective import Objective
from .downsampling import downsampled
from .entry import Entry


class Workspace:
    """One model's calibration and answers, kept between methods.

    Attributes:
        calibration, test: samples by task; they share no prompt.
        visual, text: tokens of the first prompt, by which plans are priced.
        stock, lean: prefill FLOPs of the stock model, and of it without its dead work.
        withdrew: by a plan's layers, what a plan that filters did to the image.
    """

    def __init__(
        self,
        loaded: Loaded,
        tasks: Sequence[str],
        folder: Path,
        *,
        questions: int,
        samples: int,
        batch: int,
        seen: Collection[str] = (),
        reading: Reading = AS_IS,
    ) -> None:
        """``seen``: :attr:`lookless.Sample.hash` of prompts that given plans were calibrated on; none is a question.
        ``reading``: how the tasks are read and scored."""
        self.loaded, self.tasks, self.folder, self.batch = loaded, tuple(tasks), folder, batch
        self.geometry = geometry_of(loaded.model)
        self.reading = reading
        self.calibration = {task: self.read(task, split="calibration", limit=samples) for task in tasks}
        seen = {*seen, *(prompt for chosen in self.calibration.values() for prompt in chosen.hashes)}
        self.test = {task: self._questions(task, limit=questions, without=seen) for task in tasks}
        for task in tasks:
            warn_of_skipped(tuple(dict.fromkeys(self.calibration[task].bad + self.test[task].bad)))
        self.samples = samples
        self._dense: dict[str, list[str]] = {}
        self._scores: dict[tuple[str, str], Scores] = {}
        self._lengths: dict[float, tuple[int, int]] = {}
        self._traces: dict[tuple[LayerPlan, ...], float] = {}
        self.withdrew: dict[tuple[LayerPlan, ...], str] = {}
        self.visual, self.text = self.lengths()
        full = Plan.full(self.geometry)
        self.stock, self.lean = self._priced(Entry(full)), self._priced(Entry(full.live()))

    def read(self, task: str, **settings: Any) -> Samples:
        """Samples of ``task`` as :func:`lookless.load_data` takes ``settings``; without those that the processor
        refuses, if bad ones are to be skipped."""
        found = self.reading.load(task, **settings)
        return self.loaded.fitting(found) if self.reading.skip_bad else found

    def _questions(self, task: str, **settings: Any) -> Samples:
        """Raises: LooklessError: the right answers are of no use to the metric, or it does not score single answers."""
        found = self.read(task, **settings)
        return scored_by(found, one_by_one(found.metric, task))

    def lengths(self, side: float = 1.0) -> tuple[int, int]:
        """Visual and text tokens of the first prompt, by which plans are priced, of an image of that size."""
        if side not in self._lengths:
            first = next(iter(self.test.values())).items[0]
            with downsampled(self.loaded, side) as smaller:
                prompts = prompts_of(locate(self.loaded.model), smaller.inputs([first]))
            assert prompts is not None
            self._lengths[side] = prompts.counts[0], len(prompts.text[0])
        return self._lengths[side]

    def scores(self, task: str, measure: str) -> Scores:
        """Of ``measure``, computed once and kept in the folder."""
        if (task, measure) not in self._scores:
            window = window_at(self.visual)
            narrow = measure == "window_effect" and window < PAPER_WINDOW
            path = self.folder / f"{_plain(task)}.{measure}{f'.{window}' if narrow else ''}.json"
            samples = self.calibration[task]
            found = Scores.load(path) if path.exists() else None
            if found is None or not _are_of(found, samples):
                if narrow:
                    found = sweep(self.loaded, samples, LayerPlan(attention=Window(window)), name=measure)
                else:
                    found = scores_by_name(self.loaded, samples, measure)
                found.save(path)
            self._scores[task, measure] = found
        return self._scores[task, measure]

    @cached_property
    def searched_on(self) -> Samples:
        """A few calibration samples of every task, for the methods that search."""
        each = max(1, 24 // len(self.tasks))
        return Samples("all tasks", tuple(item for task in self.tasks for item in self.calibration[task].items[:each]))

    @cached_property
    def objective(self) -> Objective:
        return Objective(self.loaded, self.searched_on)

    def dense(self, task: str) -> list[str]:
        if task not in self._dense:
            result = evaluate(self.loaded, self.test[task], batch=self.batch)
            self._dense[task] = [answer.dense for answer in result.answers]
        return self._dense[task]

    def _priced(self, entry: Entry) -> float:
        visual, text = self.lengths(entry.side)
        return flops.prefill(self.geometry, visual=visual, text=text, plan=entry.plan).total

    def kept(self, entry: Entry) -> float:
        """FLOPs run, as a share of the stock prefill's: from the formula, or from a trace if the plan filters."""
        plan = entry.plan
        assert plan is not None
        if plan.is_static:
            return self._priced(Entry(plan.as_run, entry.side)) / self.stock
        if plan.layers not in self._traces:
            self._traces[plan.layers] = self._traced(plan) / self.stock
        return self._traces[plan.layers]

    def kept_papers(self, entry: Entry) -> float | None:
        """The share as papers count it, see :class:`Outcome`: skipping dead work alone saves nothing."""
        plan, full = entry.plan, Plan.full(self.geometry)
        assert plan is not None
        if plan.layers == full.live().layers:
            return self._priced(Entry(full, entry.side)) / self.stock
        return self._priced(entry) / self.stock if plan.is_static else None

    @torch.no_grad()
    def _traced(self, plan: Plan) -> float:
        """FLOPs of a prompt, mean over a few of every task; each row is counted where it ran."""
        items = [item for task in self.tasks for item in self.calibration[task].items[:4]]
        total, withdrew = 0.0, 0
        with apply(self.loaded.model, plan), trace(self.loaded.model) as counted:
            for item in items:
                counted.clear()
                inputs = self.loaded.inputs([item])
                prompts = prompts_of(locate(self.loaded.model), inputs)
                assert prompts is not None
                self.loaded.model(**inputs, logits_to_keep=prompts.text[0])  # as formulas count: all text is read
                total += sum(flops.layer(self.geometry, index, **rows) for index, rows in enumerate(counted.layers))
                withdrew += counted.layers[-1]["key"] == len(prompts.text[0])
        self.withdrew[plan.layers] = (
            f"the image was withdrawn before the last layer in {withdrew} of {len(items)} prompts"
        )
        return total / len(items)


def _are_of(scores: Scores, samples: Samples) -> bool:
    """Whether ``scores`` are of these samples; files of schema 1 do not say, and reference tasks do not change."""
    if scores.sample_hashes is None:
        return samples.drawn_from is None
    return scores.sample_hashes == samples.hashes


def _plain(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")
