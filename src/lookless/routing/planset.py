"""Plans by task, and the numbers that route a prompt to one of them, in one folder.

SET/planset.json                     what is in the set, for which model, and how well it routed held-out prompts
SET/router.safetensors               the centroids of the tasks
SET/plans/NAME/lookless_plan.json    one plan per task, and ``fallback``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .. import files
from ..data import Samples
from ..errors import PlanError
from ..loading import Loaded
from ..plan import Plan
from ..progress import track
from ..provenance import Provenance
from ..runtime.families import geometry_of
from ..sets import SET_FILE_NAME
from ..version import __version__
from .centroids import FOLDS, Belief, Centroids, Nearest, held_out
from .embeddings import Reader, hash_of_table, hash_of_tokenizer, table_of

SCHEMA_VERSION = 1
NUMBERS = "router.safetensors"
FALLBACK = "fallback"
DOUBT = 0.05
#: A folder of the set, on any file system.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Count = Annotated[int, Field(ge=0)]


class Task(BaseModel):
    """A task of a set.

    Attributes:
        name: of the task and its plan.
        data, data_hash, sample_hashes: the prompts that the router was fitted on.
        right, wrong, fell_back: of these, held out of the fit: how many took this task's plan, another one, or the one
            to fall back to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    data: str
    data_hash: str
    sample_hashes: tuple[str, ...]
    right: Count
    wrong: Count
    fell_back: Count


class Manifest(BaseModel):
    """``planset.json``.

    Attributes:
        model, revision: its name, a hub id or a folder, and its hub commit.
        embeddings, tokenizer: sha256 of the model's input embeddings and of its tokens, 16 hex digits.
        doubt: prompts whose confidence is lower fall back: the share that should, of prompts of these tasks.
        tasks: in the order of the centroids.
        numbers: sha256 of ``router.safetensors``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: str
    revision: str | None = None
    embeddings: str
    tokenizer: str
    doubt: float = Field(gt=0, lt=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    numbers: str
    lookless_version: str = __version__

    @model_validator(mode="after")
    def _names_differ(self) -> Manifest:
        names = [task.name.casefold() for task in self.tasks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or FALLBACK in names:
            raise PlanError(f"the name {twice or FALLBACK!r} is taken: give each task another, and none {FALLBACK!r}.")
        return self


@dataclass(frozen=True)
class PlanSet:
    """Plans by task for one model, and the router between them; :class:`lookless.routing.Router` puts it to use.

    Attributes:
        manifest: what is in it.
        plans: by the names of the tasks, in their order.
        fallback: the plan of a prompt that belongs to no task, or is torn between two.
        centroids, belief: the router.
    """

    manifest: Manifest
    plans: Mapping[str, Plan]
    fallback: Plan
    centroids: Centroids
    belief: Belief

    @classmethod
    def fit(
        cls,
        loaded: Loaded,
        tasks: Mapping[str, tuple[Samples, Plan]],
        fallback: Plan | None = None,
        *,
        doubt: float = DOUBT,
        progress: bool = True,
    ) -> PlanSet:
        """Learn which prompts take which plan, from prompts of each task; answers are not used.

        Args:
            loaded: the model and its processor.
            tasks: for each name its prompts and its plan.
            fallback: by default the full plan, which changes nothing.
            doubt: the share of prompts of these tasks that may fall back, and of those that do not the share that may
                take a wrong plan.
            progress: show a bar on standard error.

        Raises:
            PlanError: a name is no folder's name, a task has too few prompts, or ``doubt`` is not between 0 and 1.
            PlanMismatchError: a plan is for another architecture.
            DataError: a prompt cannot be read.
        """
        geometry = geometry_of(loaded.model)
        plans = {name: plan for name, (_, plan) in tasks.items()}
        fallback = Plan.full(geometry) if fallback is None else fallback
        for plan in (*plans.values(), fallback):
            plan.check(geometry)
        _check_counts({name: len(samples) for name, (samples, _) in tasks.items()}, doubt)
        vectors, groups = _vectors(loaded, {name: samples for name, (samples, _) in tasks.items()}, progress)
        kinds = kinds_of(list(plans.values()))
        held = held_out(vectors, groups, kinds)
        wrong = np.array([kinds[one.group] != kinds[group] for one, group in zip(held, groups, strict=True)])
        centroids, belief = Centroids.fit(vectors, groups), Belief.of(held, wrong, doubt)
        told = _outcomes(held, wrong, belief, doubt)
        described = tuple(
            Task(
                name=name,
                data=samples.name,
                data_hash=samples.hash,
                sample_hashes=samples.hashes,
                **{outcome: int((told[groups == group] == outcome).sum()) for outcome in _OUTCOMES},
            )
            for group, (name, (samples, _)) in enumerate(tasks.items())
        )
        manifest = Manifest(
            model=loaded.name,
            revision=loaded.revision,
            embeddings=hash_of_table(table_of(loaded.model)),
            tokenizer=hash_of_tokenizer(loaded.processor.tokenizer),
            doubt=doubt,
            tasks=described,
            numbers=_hash(_numbers(centroids, belief)),
        )
        return cls(manifest, plans, fallback, centroids, belief)

    @property
    def provenance(self) -> Provenance:
        """Of its plans together: the samples that any of them was calibrated on, or the router fitted on."""
        plans = (*self.plans.values(), self.fallback)
        seen = [task.sample_hashes for task in self.manifest.tasks]
        seen += [plan.provenance.sample_hashes or () for plan in plans]
        return Provenance(
            method="a plan set",
            model=self.manifest.model,
            sample_hashes=tuple(dict.fromkeys(one for hashes in seen for one in hashes)),
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the set into ``folder``, ``planset.json`` last, and return its path.

        Raises:
            PlanError: the folder has plans of other names, which would look like parts of the set.
        """
        folder = Path(folder)
        there = sorted(path.name for path in (folder / "plans").glob("*"))
        strange = next((name for name in there if name not in (*self.plans, FALLBACK)), None)
        if strange is not None:
            raise PlanError(f"{folder}/plans has {strange!r}, which is not of this set: choose another folder.")
        for name, plan in (*self.plans.items(), (FALLBACK, self.fallback)):
            plan.save_pretrained(folder / "plans" / name)
        files.write_bytes(folder / NUMBERS, _numbers(self.centroids, self.belief))
        files.write_text(folder / SET_FILE_NAME, files.dump(self.manifest))
        return folder / SET_FILE_NAME

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PlanSet:
        """The set in a folder; nothing in it is executed.

        Raises:
            PlanError: there is none, a part is missing or damaged, or a newer library wrote it.
        """
        folder = Path(folder)
        manifest = files.load(folder / SET_FILE_NAME, Manifest, PlanError, SCHEMA_VERSION)
        plans = {task.name: Plan.from_pretrained(folder / "plans" / task.name) for task in manifest.tasks}
        fallback = Plan.from_pretrained(folder / "plans" / FALLBACK)
        centroids, belief = _read_numbers(folder / NUMBERS, manifest)
        return cls(manifest, plans, fallback, centroids, belief)


def kinds_of(plans: Sequence[Plan]) -> NDArray[np.int64]:
    """A number for each plan, the same for plans that do the same."""
    return np.array([next(i for i, other in enumerate(plans) if other.hash == plan.hash) for plan in plans])


_OUTCOMES = ("right", "wrong", "fell_back")


def _check_counts(counts: Mapping[str, int], doubt: float) -> None:
    """Raises: PlanError: there are too few prompts for held-out ones to say what is rare."""
    if not 0 < doubt < 1:
        raise PlanError(f"doubt is {doubt:g} and should be between 0 and 1.")
    if not counts:
        raise PlanError("there is no task: give at least one, with its prompts and its plan.")
    for name, count in counts.items():
        if count < FOLDS:
            raise PlanError(f"{name} has {count} prompts and the router needs {FOLDS} of each task: give more.")
    enough, total = int(np.ceil(2 / doubt)), sum(counts.values())
    if total < enough:
        raise PlanError(
            f"the tasks have {total} prompts together, and to say of one in {1 / doubt:g} that it is unlike them "
            f"takes {enough}: give more, or a larger doubt."
        )


def _vectors(
    loaded: Loaded, tasks: Mapping[str, Samples], progress: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of all prompts, ``[prompts, features]``, and the task of each. Raises: PlanError: a prompt has no text."""
    reader, vectors, groups = Reader(loaded.model), [], []
    pairs = [(group, sample) for group, samples in enumerate(tasks.values()) for sample in samples]
    for group, sample in track(pairs, "reading prompts", progress):
        [vector] = reader.vectors(loaded.inputs([sample]))
        if vector is None:
            raise PlanError(f"{sample.where or 'a prompt'} has no text, by which prompts are routed: leave it out.")
        vectors.append(vector)
        groups.append(group)
    return np.stack(vectors), np.array(groups)


def _outcomes(held: Sequence[Nearest], wrong: NDArray[np.bool_], belief: Belief, doubt: float) -> NDArray[np.str_]:
    def outcomes() -> Iterator[str]:
        for one, is_wrong in zip(held, wrong, strict=True):
            yield "fell_back" if belief.confidence(one) < doubt else "wrong" if is_wrong else "right"

    return np.array(list(outcomes()))


def _numbers(centroids: Centroids, belief: Belief) -> bytes:
    held = {"held_distances": belief.distances, "held_ratios": belief.ratios, "torn": np.array([belief.torn])}
    return save({**centroids.tensors(), **held})


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_numbers(path: Path, manifest: Manifest) -> tuple[Centroids, Belief]:
    """Raises: PlanError: the file is missing, not the one that ``manifest`` was written with, or no router."""
    try:
        content = files.read_bytes(path)
        if _hash(content) != manifest.numbers:
            raise PlanError(f"{path} is not the file that {SET_FILE_NAME} was written with: fit the set anew.")
        found = load(content)
        held = [found.pop(name) for name in ("held_distances", "held_ratios", "torn")]
        centroids, belief = Centroids(**found), Belief(held[0], held[1], float(held[2][0]))
        _check_numbers(centroids, belief, len(manifest.tasks))
    except OSError as problem:
        raise PlanError(f"{path} cannot be read ({problem.strerror}): fit the set anew.") from problem
    except (SafetensorError, KeyError, TypeError, IndexError, ValueError, AttributeError) as problem:
        raise PlanError(f"{path} holds no router of {len(manifest.tasks)} tasks: fit the set anew.") from problem
    return centroids, belief


def _check_numbers(centroids: Centroids, belief: Belief, tasks: int) -> None:
    """Raises: ValueError: shapes do not fit, or a number is not finite."""
    features, rank = centroids.basis.shape
    wanted = {"mean": (features,), "scale": (features,), "basis": (features, rank), "variance": (rank,)}
    wanted |= {"floor": (1,), "centres": (tasks, rank)}
    every = {**centroids.tensors(), "distances": belief.distances, "ratios": belief.ratios}
    is_shaped = all(every[name].shape == shape for name, shape in wanted.items())
    is_finite = all(array.dtype == np.float64 and np.isfinite(array).all() for array in every.values())
    is_positive = (centroids.variance > 0).all() and (centroids.floor > 0).all()
    if not (is_shaped and is_finite and is_positive and belief.distances.shape == belief.ratios.shape):
        raise ValueError("the router's arrays do not fit together")
