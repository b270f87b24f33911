"""The certificate: which plans of a chain were tested on which questions, and which of them keep the promise."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .. import files
from ..errors import LooklessError
from ..plan import Plan
from ..version import __version__

SCHEMA_VERSION = 1
FILE_NAME = "certificate.json"

Verdict = Literal["certified", "not enough data", "loses too much"]
#: What a loss is, in words that follow "at most 1% of".
MEANINGS = {
    "lost": "the questions that the dense model answers right are answered wrong",
    "changed": "the answers differ from the dense model's",
}


class TaskTest(BaseModel):
    """One plan on the questions of one task.

    The hypothesis is that the plan's true loss on the task, over all the questions that these were drawn from, is
    higher than the certificate's level. A small p-value speaks against it.

    Attributes:
        task: the name of the data.
        data_hash: sha256 of the samples, 16 hex digits; None if it is not known.
        samples: questions that were answered.
        n: those that count: for ``lost`` the ones that the dense model answers right, for ``changed`` all.
        bad: those of them with a loss.
        loss: the mean loss over the ``n``; ``bad / n`` where a loss is 0 or 1.
        p_value: of that hypothesis.
        upper: upper confidence bound on the true loss, at the certificate's confidence.
        passed: ``p_value`` is at most 1 - confidence.
        needed: how many questions would do, if the loss stayed what it is here and as large a share of them counted;
            where none counted, how many have to. None where the test passed, and where the loss is as high as the
            level, so that no number would do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    data_hash: str | None = None
    samples: int = Field(ge=0)
    n: int = Field(ge=0)
    bad: int = Field(ge=0)
    loss: float = Field(ge=0, le=1)
    p_value: float = Field(ge=0, le=1)
    upper: float = Field(ge=0, le=1)
    passed: bool
    needed: int | None = None


class PlanTest(BaseModel):
    """One plan of the chain, on every task. It passes where every task does.

    Attributes:
        plan: its name, for a reader.
        plan_hash: :attr:`lookless.Plan.hash`; None if it is not known.
        tasks: the tests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: str
    plan_hash: str | None = None
    tasks: tuple[TaskTest, ...] = Field(min_length=1)

    @property
    def passed(self) -> bool:
        return all(task.passed for task in self.tasks)

    @property
    def worst(self) -> TaskTest:
        """The task with the highest p-value; it decides."""
        return max(self.tasks, key=lambda task: task.p_value)

    @property
    def p_value(self) -> float:
        """Of the hypothesis that the loss of at least one task is higher than the level."""
        return self.worst.p_value

    @property
    def upper(self) -> float:
        """Upper confidence bound on the loss of the worst task."""
        return max(task.upper for task in self.tasks)

    @property
    def needed(self) -> int | None:
        """How many questions of each task would do; None if the plan passed, or if no number would."""
        missing = [task.needed for task in self.tasks if not task.passed]
        return None if not missing or None in missing else max(n for n in missing if n is not None)

    @property
    def verdict(self) -> Verdict:
        if self.passed:
            return "certified"
        return "loses too much" if self.needed is None else "not enough data"


class Certificate(BaseModel):
    """A chain of plans, tested from mild to aggressive up to the first that failed.

    With probability ``confidence`` over the questions drawn, *every* plan of :attr:`certified` keeps the promise: on
    every task its loss, over all the questions that these were drawn from, is at most ``level``. It holds for questions
    drawn independently, and drawn like those to come; none may have chosen the plans or their order.

    Attributes:
        loss: ``lost``: dense right and plan wrong, among the questions that the dense model answers right (so that the
            retention is at least 1 - level); ``changed``: the answer differs; or the name of a graded loss.
        level: the promise: the largest loss allowed.
        confidence: 1 - the probability that any certified plan breaks it.
        asked: the level was asked for before any answer was seen. False: the one plan's own upper bound.
        pooled: the tasks were tested as one, so that the promise is on their mixture alone.
        model: its name.
        tests: the plans tested, mild ones first; all but perhaps the last have passed.
        untested: how many more aggressive plans of the chain were not tested.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    loss: str = "lost"
    level: float = Field(ge=0, le=1)
    confidence: float = Field(gt=0, lt=1)
    asked: bool = True
    pooled: bool = False
    model: str | None = None
    tests: tuple[PlanTest, ...] = Field(min_length=1)
    untested: int = Field(default=0, ge=0)
    lookless_version: str = __version__

    @model_validator(mode="after")
    def _stops_at_the_first_failure(self) -> Certificate:
        if not all(test.passed for test in self.tests[:-1]):
            raise ValueError("the tests end at the first plan that fails")
        return self

    @property
    def certified(self) -> tuple[PlanTest, ...]:
        """The plans that keep the promise, mild ones first; empty if there is none."""
        return tuple(test for test in self.tests if test.passed)

    @property
    def chosen(self) -> PlanTest | None:
        """The most aggressive of them."""
        return self.certified[-1] if self.certified else None

    @property
    def failed(self) -> PlanTest | None:
        """The first plan that failed; None if all passed."""
        return None if self.tests[-1].passed else self.tests[-1]

    @property
    def verdict(self) -> Verdict:
        """``certified`` if any plan is; else why the mildest is not."""
        return "certified" if self.certified else self.tests[0].verdict

    def covers(self, plan: Plan) -> bool:
        """Whether ``plan``, this very table for this architecture, is among the certified ones."""
        return any(test.plan_hash == plan.hash for test in self.certified)

    def __str__(self) -> str:
        """One sentence for each of: the promise, and the plan that failed."""
        return " ".join(filter(None, (self._promise(), self._failure())))

    def _promise(self) -> str:
        what = f"at most {self.level:.2%} of {MEANINGS.get(self.loss, f'the {self.loss}')}"
        where = "on every task" if len(self.tests[0].tasks) > 1 else f"on {self.tests[0].tasks[0].task}"
        if self.chosen is None:
            return f"Nothing is certified: not that {what} {where} ({self.verdict})."
        return f"{self.chosen.plan}: {what} {where}, with {self.confidence:.0%} confidence."

    def _failure(self) -> str:
        if self.failed is None:
            return ""
        test = self.failed.worst
        seen = f"{self.failed.plan} failed: {test.bad} of {test.n} on {test.task}, p = {test.p_value:.2g}"
        if self.failed.needed is None:
            return f"{seen}."
        return f"{seen}; about {self.failed.needed} questions of each task would do if the loss stayed as it is."

    def save(self, path: str | Path) -> Path:
        """Write ``path``, completely or not at all."""
        files.write_text(Path(path), files.dump(self))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """The certificate in ``path``: a JSON file, or ``certificate.json`` in a folder.

        Raises:
            LooklessError: there is none, it is not valid, or a newer library wrote it.
        """
        path = Path(path)
        return files.load(path / FILE_NAME if path.is_dir() else path, cls, LooklessError, SCHEMA_VERSION)
