"""A plan set at work on a model: the plan of each prompt, and answers under it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import Sample
from ..errors import PlanError, PlanMismatchError
from ..loading import Loaded
from ..plan import Plan
from ..progress import track
from ..runtime.families import geometry_of
from ..runtime.patching import apply
from .embeddings import Reader, hash_of_table, hash_of_tokenizer
from .planset import FALLBACK, PlanSet, kinds_of


@dataclass(frozen=True)
class Route:
    """Where a prompt goes.

    Attributes:
        name: of the task, or ``fallback``.
        confidence: from 0 to 1, a p-value: below the set's ``doubt`` the prompt falls back. Of prompts of the set's
            tasks, at most about a share ``c`` has a confidence of ``c`` or less.
        nearest: the task most like it, even where it falls back; None for a prompt without text.
    """

    name: str
    confidence: float
    nearest: str | None


class Router:
    """A plan set on one model.

    Args:
        planset: the plans.
        loaded: the model they are for, with no plan on it, and its processor.

    Raises:
        PlanMismatchError: the set was fitted on another model or another tokenizer.
    """

    def __init__(self, planset: PlanSet, loaded: Loaded) -> None:
        self.planset, self.loaded = planset, loaded
        self.names = tuple(planset.plans)
        self._kinds = kinds_of(list(planset.plans.values()))
        self._reader = Reader(loaded.model)
        self._check()

    def _check(self) -> None:
        made, tokenizer = self.planset.manifest, self.loaded.processor.tokenizer
        table = self._reader.table
        features = table.shape[1] + 1
        if len(self.planset.centroids.mean) != features or hash_of_table(table) != made.embeddings:
            raise PlanMismatchError(
                f"the plan set was fitted on {made.model}, whose input embeddings are not those of {self.loaded.name}: "
                f"fit one on this model with `lookless route`."
            )
        if hash_of_tokenizer(tokenizer) != made.tokenizer:
            raise PlanMismatchError(
                f"the plan set was fitted on {made.model} with another tokenizer than this one: fit one with "
                f"`lookless route`."
            )
        for plan in (*self.planset.plans.values(), self.planset.fallback):
            plan.check(geometry_of(self.loaded.model))

    def route(self, inputs: Mapping[str, Any]) -> tuple[Route, ...]:
        """Where each prompt of a batch goes.

        Args:
            inputs: the model's arguments; ``input_ids`` and ``attention_mask`` are read.

        Raises:
            ModelError: there are no ids.
        """
        return tuple(self._route(vector) for vector in self._reader.vectors(inputs))

    def _route(self, vector: Any) -> Route:
        if vector is None:
            return Route(FALLBACK, 0.0, None)
        nearest = self.planset.centroids.nearest(vector, self._kinds)
        confidence = self.planset.belief.confidence(nearest)
        name = self.names[nearest.group]
        return Route(name if confidence >= self.planset.manifest.doubt else FALLBACK, confidence, name)

    def plan(self, route: Route) -> Plan:
        """That of the task to which ``route`` leads, or the one for all others."""
        return self.planset.plans.get(route.name, self.planset.fallback)

    def plan_for(self, inputs: Mapping[str, Any]) -> Plan:
        """The plan of a prompt, or of a batch whose prompts take the same one::

            with lookless.apply(model, router.plan_for(inputs)):
                model.generate(**inputs)

        Raises:
            PlanError: the prompts take different plans.
        """
        routes = self.route(inputs)
        first = self.plan(routes[0])
        if any(self.plan(route) != first for route in routes):
            names = ", ".join(sorted({route.name for route in routes}))
            raise PlanError(
                f"the {len(routes)} prompts of this batch take different plans ({names}), and a batch runs under one: "
                f"split it, or use Router.answer, which does."
            )
        return first

    def route_samples(self, samples: Sequence[Sample], *, progress: bool = False) -> tuple[Route, ...]:
        """Where each of ``samples`` goes; ``progress`` shows a bar."""
        return tuple(
            route
            for sample in track(samples, "routing", progress)
            for route in self.route(self.loaded.inputs([sample]))
        )

    def answer(
        self,
        samples: Iterable[Sample],
        *,
        routes: Sequence[Route] | None = None,
        batch: int = 25,
        max_new_tokens: int = 32,
        progress: bool = False,
    ) -> list[str]:
        """The model's greedy answers, each under the plan of its prompt, in the order of ``samples``.

        Samples that take equal plans are answered together.

        Args:
            samples: the questions.
            routes: where they go, if it is known.
            batch: prompts answered together.
            max_new_tokens: length of the longest answer.
            progress: show a bar on standard error.

        Raises:
            ModelError: a plan is already applied to the model, or the logits of a step are not finite.
        """
        samples = tuple(samples)
        routes = self.route_samples(samples, progress=progress) if routes is None else routes
        answers: dict[int, str] = {}
        for plan, members in self._groups(routes):
            chunks = [members[at : at + batch] for at in range(0, len(members), batch)]
            with apply(self.loaded.model, plan):
                for chunk in track(chunks, f"answers under {routes[members[0]].name}", progress):
                    said = self.loaded.answer([samples[index] for index in chunk], max_new_tokens=max_new_tokens)
                    answers |= dict(zip(chunk, said, strict=True))
        return [answers[index] for index in range(len(samples))]

    def _groups(self, routes: Sequence[Route]) -> list[tuple[Plan, list[int]]]:
        """Each plan with the samples that take it."""
        groups: list[tuple[Plan, list[int]]] = []
        for index, route in enumerate(routes):
            plan = self.plan(route)
            members = next((members for other, members in groups if other == plan), None)
            if members is None:
                groups.append((plan, [index]))
            else:
                members.append(index)
        return groups
