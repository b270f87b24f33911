"""What a plan costs in answers: accuracy, retention, and fidelity to the answers of the dense model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import bootstrap

from .data import Sample, Samples, SeenWarning, overlap
from .each import each
from .loading import Loaded
from .plan import Plan, Provenance
from .processes import Worker, team_of
from .runtime.patching import applied
from .unfinished import Unfinished
from .version import __version__

RESAMPLES = 2000
CONFIDENCE = 0.95


class Answer(BaseModel):
    """One question with its answers.

    Attributes:
        question, expected: of the sample.
        dense: the dense model's answer.
        plan: the answer under the plan; None if no plan was evaluated.
        sample_hash: :attr:`lookless.Sample.hash` of the prompt.
    """

    model_config = ConfigDict(frozen=True)

    question: str
    expected: str
    dense: str
    plan: str | None = None
    sample_hash: str | None = None


class Estimate(BaseModel):
    """A value and its 95 % bootstrap interval over questions."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


class Evaluation(BaseModel):
    """A model on one set of samples, dense and with a plan.

    Attributes:
        accuracy_dense, accuracy_plan: share of answers that match exactly, apart from case and a final full stop.
        retention: ``accuracy_plan / accuracy_dense``; None if no answer of the dense model is right.
        fidelity: share of the plan's answers that equal the dense model's, right or wrong; needs no labels.
        answers: each question with both answers.
        data_hash: sha256 of the samples, 16 hex digits.
        calibration_hash: the same of the samples that the plan was calibrated on; None if the plan does not name them.
        seen: how many of the samples the plan was calibrated on; None if the plan does not name them.
        left_out: how many lines of the data were left out because the plan was calibrated on them.
        plan_hash: :attr:`lookless.Plan.hash`; None without a plan, and under a plan set.
    """

    model_config = ConfigDict(frozen=True)

    data: str
    model: str
    samples: int
    accuracy_dense: Estimate
    accuracy_plan: Estimate | None = None
    retention: Estimate | None = None
    fidelity: Estimate | None = None
    answers: tuple[Answer, ...]
    data_hash: str | None = None
    calibration_hash: str | None = None
    seen: int | None = 0
    left_out: int = 0
    plan_hash: str | None = None


def normal(answer: str) -> str:
    """``answer`` as it is compared: without outer blanks and a final full stop, in lower case."""
    return answer.strip().removesuffix(".").casefold()


def evaluate(
    loaded: Loaded,
    samples: Samples,
    plan: Plan | None = None,
    *,
    batch: int = 25,
    max_new_tokens: int = 32,
    dense: Sequence[str] | None = None,
    progress: bool = True,
    kept: Unfinished | None = None,
) -> Evaluation:
    """Answer every sample greedily, dense and under ``plan``, and compare.

    Args:
        loaded: the model and its processor.
        samples: the questions.
        plan: None evaluates the dense model alone.
        batch: prompts answered together.
        max_new_tokens: length of the longest answer.
        dense: answers of the dense model, if they are known.
        progress: show a progress bar on a terminal.
        kept: where answers are kept as they come, and those of a run that was killed are found.

    Raises:
        PlanMismatchError: the plan is for another architecture.
        ModelError: the model has a plan on it already, or gives logits that are not finite.

    Warns:
        SeenWarning: the plan was calibrated on some of the samples. Leave them out with
            ``load_data(..., without=plan.provenance.sample_hashes)``.
    """
    dense = dense_answers(loaded, samples, batch, max_new_tokens, progress, kept) if dense is None else dense
    if plan is None:
        return _of_dense(loaded.name, samples, dense)
    planned = _answers(loaded, samples, plan, batch, max_new_tokens, progress, kept)
    found = compared(loaded.name, samples, dense, planned, plan.provenance)
    return found.model_copy(update={"plan_hash": plan.hash})


def dense_answers(
    loaded: Loaded,
    samples: Samples,
    batch: int,
    max_new_tokens: int,
    progress: bool,
    kept: Unfinished | None = None,
) -> list[str]:
    """The stock model's greedy answers.

    Raises:
        ModelError: the model has a plan on it, or gives logits that are not finite.
    """
    return _answers(loaded, samples, None, batch, max_new_tokens, progress, kept)


def compared(
    model: str, samples: Samples, dense: Sequence[str], planned: Sequence[str], made: Provenance
) -> Evaluation:
    """Answers of the dense model beside those under what was ``made`` for it.

    Warns:
        SeenWarning: it was calibrated on some of the samples.
    """
    seen = _seen(samples, made)
    if seen != 0:
        warnings.warn(_seen_sentence(samples.name, len(samples), seen), SeenWarning, stacklevel=3)
    kept = _agree(planned, _expected(samples))
    return _of_dense(model, samples, dense, planned).model_copy(
        update={
            "accuracy_plan": mean_estimate(kept),
            "retention": retention_estimate(kept, _agree(dense, _expected(samples))),
            "fidelity": mean_estimate(_agree(planned, dense)),
            "calibration_hash": made.data_hash,
            "seen": seen,
        }
    )


def _of_dense(model: str, samples: Samples, dense: Sequence[str], planned: Sequence[str] | None = None) -> Evaluation:
    """The dense model alone, beside the answers under a plan where there is one."""
    return Evaluation(
        data=samples.name,
        model=model,
        samples=len(samples),
        accuracy_dense=mean_estimate(_agree(dense, _expected(samples))),
        answers=_side_by_side(samples, dense, planned),
        data_hash=samples.hash,
        left_out=samples.left_out,
    )


def _expected(samples: Samples) -> list[str]:
    return [sample.answer for sample in samples]


def _side_by_side(samples: Samples, dense: Sequence[str], planned: Sequence[str] | None) -> tuple[Answer, ...]:
    plans: Sequence[str | None] = [None] * len(dense) if planned is None else planned
    return tuple(
        Answer(question=s.question, expected=s.answer, dense=d, plan=p, sample_hash=s.hash)
        for s, d, p in zip(samples, dense, plans, strict=True)
    )


def _seen(samples: Samples, made: Provenance) -> int | None:
    """How many of ``samples`` the plan was calibrated on; None if it names data of this name but no samples."""
    if made.sample_hashes is None:
        return None if made.data is not None and samples.name in made.data.split(" + ") else 0
    return overlap(samples.hashes, made.sample_hashes)


def _seen_sentence(data: str, samples: int, seen: int | None) -> str:
    if seen is None:
        return (
            f"the plan was calibrated on {data} and does not say on which lines: some of these {samples} may be among "
            f"them, and other samples may give lower accuracy, so calibrate anew."
        )
    return (
        f"the plan was calibrated on {seen} of these {samples} samples of {data}: other samples may give lower "
        f"accuracy, so evaluate on samples that it has not seen."
    )


def _answers(
    loaded: Loaded,
    samples: Samples,
    plan: Plan | None,
    batch: int,
    max_new_tokens: int,
    progress: bool,
    kept: Unfinished | None = None,
) -> list[str]:
    """Batches are split over processes whole: an answer may depend on the padding that its neighbours cause."""
    items = samples.items
    chunks = [items[i : i + batch] for i in range(0, len(items), batch)]
    who = "dense" if plan is None else "plan"
    if kept is not None:
        plan_hash = None if plan is None else plan.hash
        made_from = loaded.fingerprint, samples.hash, plan_hash, batch, max_new_tokens, __version__
        kept = kept.of(who, *made_from)
    work = partial(answering, plan=plan, max_new_tokens=max_new_tokens)
    said = each(team_of(loaded), chunks, work, what=f"{who} answers to {samples.name}", progress=progress, kept=kept)
    return [answer for answers in said for answer in answers]


def answering(
    worker: Worker, chunks: Iterable[Sequence[Sample]], *, plan: Plan | None, max_new_tokens: int
) -> Iterator[list[str]]:
    """The greedy answers to each batch under ``plan``."""
    with applied(worker.loaded.model, plan):
        for chunk in chunks:
            yield worker.loaded.answer(chunk, max_new_tokens=max_new_tokens)


def _agree(answers: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """1.0 where two answers are equal, else 0.0, ``[questions]``."""
    return np.array([normal(a) == normal(b) for a, b in zip(answers, others, strict=True)], dtype=float)


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of ``values``, ``[questions]``, with its bootstrap interval."""
    return _estimate((values,), lambda v, axis=-1: v.mean(axis=axis))


def retention_estimate(plan: np.ndarray, dense: np.ndarray) -> Estimate | None:
    """Ratio of the means, ``[questions]`` each, resampled in pairs; None if ``dense`` is all zero."""
    if not dense.any():
        return None
    # A resample in which no dense answer is right has no ratio; any useful accuracy rules it out.
    return _estimate((plan, dense), lambda p, d, axis=-1: p.mean(axis=axis) / np.maximum(d.mean(axis=axis), 1e-9))


def paired_difference(values: np.ndarray, others: np.ndarray) -> Estimate:
    """Mean of ``values - others``, resampled in pairs: answers to the same questions."""
    return mean_estimate(values - others)


def _estimate(columns: Sequence[np.ndarray], statistic: object) -> Estimate:
    value = float(statistic(*columns))  # type: ignore[operator]
    if len(columns[0]) < 2:
        return Estimate(value=value, low=value, high=value)
    interval = bootstrap(
        tuple(columns),
        statistic,
        n_resamples=RESAMPLES,
        paired=len(columns) > 1,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",  # BCa is undefined where every resample is the same, as at 100 %
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value=value, low=float(interval.low), high=float(interval.high))
