"""The one idea: a method is a table with one row per decoder layer.

A decoder layer does two things to a visual token: it lets the token *attend* and it *transforms* it. Every
training-free method in the field chooses, layer by layer, which visual tokens take part in what. So a method
is not code inside a model, it is data::

    layer   keep      attention   ffn          a visual token in this layer ...
    0       full      full        full         is a query row, a key row and an FFN row, as the model was trained
    1       full      skip        full         is no query row (V-Skip); text still attends to its keys and values
    2       full      skip        skip         passes through unchanged: frozen (ShortV)
    3       0.5 by R  full        full         stays alive only if it is among the best half by R (FastV)
    4       none      full        full         is dropped from here on (VTW)

Two more columns, ``visible`` and ``decode``, say whether text attends to its keys and values in a layer, and whether
they are cached for the answer. Text tokens take part in everything, but for what the last column, ``before``, freezes:
text before the image. A :class:`Plan` is that table and where it came from. It is frozen, has no torch in it, prints as
a table, and saves as sorted, versioned JSON::

    plan = Plan.full(geometry).at([7, 8, 9], attention=Skip())
    plan.save_pretrained("my_plan")
    with lookless.apply(model, plan):
        model.generate(**inputs)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from . import files
from .cells import Cell, Skip
from .errors import PlanError, PlanMismatchError
from .geometry import Geometry
from .layer_plan import COLUMNS, KEPT, LayerPlan, LayerWork
from .limits import check_cells
from .liveness import Read, liveness, without_idle_ranks
from .provenance import Provenance
from .ranks import RANKS
from .sets import PLAN_FILE_NAME, check_one_plan
from .weights import Weights, pack, read

SCHEMA_VERSION = 4
FILE_NAME = PLAN_FILE_NAME
WEIGHTS_NAME = "lookless_plan.safetensors"
Counts = tuple[dict[str, float], ...]  # of each layer, rows by operator


class Plan(BaseModel):
    """A table with one row per decoder layer, and where it came from.

    Attributes:
        layers: one :class:`LayerPlan` per decoder layer, first layer first.
        geometry: the architecture the plan is for; ``None`` fits any model with as many layers.
        provenance: how it was made.

    Raises:
        PlanError: there are more or fewer rows than the geometry has layers, or a rank reads the layer before, and
            there is none, or no visual keys are made in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    layers: tuple[LayerPlan, ...] = Field(min_length=1)
    geometry: Geometry | None = None
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _a_row_for_every_layer(self) -> Plan:
        if self.geometry is not None and len(self.layers) != self.geometry.layers:
            raise PlanError(
                f"the plan has {len(self.layers)} rows and its geometry {self.geometry.layers} layers: a plan has one "
                f"row for each layer."
            )
        return self

    @model_validator(mode="after")
    def _ranks_can_be_read(self) -> Plan:
        for layer, row in enumerate(self.layers):
            for rank in row.ranks:
                if RANKS[rank].reads == "previous":
                    if layer == 0:
                        raise PlanError(f"layer 0 ranks by {rank}, which reads the layer before: there is none.")
                    if not self.layers[layer - 1].work.reads_visual_keys:
                        raise PlanError(
                            f"layer {layer} ranks by {rank}, and no visual key is read in the layer before."
                        )
                if RANKS[rank].reads == "tower" and layer > 0:
                    raise PlanError(f"layer {layer} ranks by {rank}, which is of the vision tower: use it in layer 0.")
        return self

    @classmethod
    def full(cls, model: Geometry | int) -> Plan:
        """The plan that changes nothing, for ``model``: an architecture or a number of layers."""
        if isinstance(model, Geometry):
            return cls(layers=(LayerPlan(),) * model.layers, geometry=model)
        return cls(layers=(LayerPlan(),) * model)

    def at(self, layers: Iterable[int], **cells: Cell) -> Plan:
        """This plan with ``cells`` (``attention=Skip()``, ``keep=Keep(0)``, ...) set in ``layers``.

        Layers count from 0. ``keep`` drops tokens at the entry of its layer, for this layer and all later ones. The
        plan itself stays as it is.

            >>> from lookless import Keep, Plan, Skip
            >>> plan = Plan.full(4).at([1, 3], attention=Skip()).at([2], keep=Keep(0.5, rank="diversity"))
            >>> plan.skipped("attention")
            (1, 3)
            >>> print(plan)
            layer  keep              attention  ffn
                0  full              full       full
                1  full              skip       full
                2  0.5 by diversity  full       full
                3  full              skip       full

        Raises:
            PlanError: a layer that is not there, a column that is not one, or a cell that does not fit it.
        """
        unknown = sorted(set(cells) - set(COLUMNS))
        if unknown:
            raise PlanError(f"a plan has no column {unknown[0]!r}; its columns are {', '.join(COLUMNS)}.")
        rows = list(self.layers)
        for layer in layers:
            if not 0 <= layer < len(rows):
                raise PlanError(f"layer {layer} is not in a plan of {len(rows)} layers (0 to {len(rows) - 1}).")
            rows[layer] = _row({**dict(rows[layer]), **cells})
        return Plan(**{**dict(self), "layers": tuple(rows)})

    def made_by(self, **fields: Any) -> Plan:
        """This plan with fields of its provenance set."""
        return self.model_copy(update={"provenance": self.provenance.model_copy(update=fields)})

    def __or__(self, other: Plan) -> Plan:
        """Both plans at once: ``redundant_attention | redundant_ffn``.

        Raises:
            PlanMismatchError: the plans are for different architectures.
            PlanError: both set the same cell of the same layer.
        """
        self._check_fits(len(other.layers), other.geometry)
        rows = []
        for layer, (mine, theirs) in enumerate(zip(self.layers, other.layers, strict=True)):
            row = {}
            for column in COLUMNS:
                a, b = getattr(mine, column), getattr(theirs, column)
                if not (a.is_full or b.is_full):
                    raise PlanError(
                        f"both plans set {column} of layer {layer} ({a} and {b}): drop it from one of them."
                    )
                row[column] = b if a.is_full else a
            rows.append(_row(row))
        names = [p.provenance.method or "a plan" for p in (self, other)]
        seen = [p.provenance.sample_hashes for p in (self, other)]
        provenance = Provenance(
            method=" | ".join(names),
            model=self.provenance.model or other.provenance.model,
            sample_hashes=tuple(dict.fromkeys(h for hashes in seen for h in hashes or ())) if any(seen) else None,
        )
        return Plan(layers=tuple(rows), geometry=self.geometry or other.geometry, provenance=provenance)

    @property
    def hash(self) -> str:
        """sha256 of the rows and the geometry, 16 hex digits: plans with equal hashes do the same.

        Where a plan came from is no part of it, nor are full cells, so that a column of a later version changes none.
        """
        cells = [
            {c: getattr(row, c).model_dump(mode="json") for c in COLUMNS if not getattr(row, c).is_full}
            for row in self.layers
        ]
        geometry = self.geometry and self.geometry.model_dump(mode="json")
        return hashlib.sha256(json.dumps([cells, geometry], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_full(self) -> bool:
        """Whether the plan changes nothing."""
        return all(row.is_full for row in self.layers)

    def skipped(self, column: str) -> tuple[int, ...]:
        """Layers whose ``column`` is :class:`Skip`."""
        return tuple(i for i, row in enumerate(self.layers) if getattr(row, column) == Skip())

    @property
    def frozen(self) -> tuple[int, ...]:
        """The layers in which visual tokens run neither operator."""
        return tuple(i for i, row in enumerate(self.layers) if row.attention.skips and row.ffn.skips)

    @property
    def is_static(self) -> bool:
        """Whether the number of rows is known before the prompt is seen; a :class:`~lookless.Filter` decides it prompt
        by prompt."""
        return all(cell.is_static for row in self.layers for cell in row.cells)

    @property
    def is_prefix_cache_safe(self) -> bool:
        """Whether keys and values of a prefix that holds all visual tokens can be reused before another question.

        They can where no visual token's part depends on the text after it: skipping, windows, neurons, withdrawal, and
        ranks that do not read the question. (Not a prefix that ends between two images: ranks and probes go over all
        of a prompt.) They cannot where text before the image is frozen, which prompts without one share, unfrozen.
        """
        read = any(RANKS[rank].question for row in self.layers for rank in row.ranks)
        return not read and all(row.before.is_full for row in self.layers)

    def live(self) -> Plan:
        """This plan without dead work; what is left gives text the same states, to the bit.

        A visual token's attention and FFN in a layer are dead work if no later layer uses that token as a key row
        (:mod:`lookless.liveness`). So in every model the last layer's are, and so are those of the layer before a
        withdrawal, and of a run of layers at the end in which text attends to no visual key. A rank is dead work where
        all visual tokens are withdrawn, or none is wanted.
        """
        return Plan(**{**dict(self), "layers": tuple(read.row for read in self.reads())})

    def reads(self) -> tuple[Read, ...]:
        """What anyone reads of each layer in a call that returns the logits of some text rows alone."""
        owners = None if self.geometry is None else self.geometry.owners
        return liveness(without_idle_ranks(self.layers), KEPT, owners=owners)

    def works(self, *, kept: bool = False) -> tuple[LayerWork, ...]:
        """What each layer computes under this plan, dead work included.

        ``kept``: what runs in a call that returns the logits of some text rows alone, as ``generate`` does: no dead
        work, and in the last layer no text row but these. Under a full plan the stock model runs, and every row.
        """
        if not kept or self.is_full:
            return tuple(row.work for row in self.layers)
        return tuple(read.work for read in self.reads())

    @property
    def as_run(self) -> Plan:
        """What the runtime computes under this plan where the logits of all text are wanted, and of no image: itself if
        it is full, else :meth:`live`. Where those of some rows are, as in ``generate``, see :meth:`works`."""
        return self if self.is_full else self.live()

    def rows(self, visual: float, text: float, kept: float | None = None, *, before: float = 0) -> Counts:
        """Per layer, how many tokens of a prompt are ``query``, ``key`` and ``ffn`` rows under this plan.

        The prices of :mod:`lookless.flops` are of these rows, and ``lookless.trace`` counts them. Means over prompts
        may be fractions. Given ``kept``, those that run in a call that returns the logits of so many of the text rows,
        all behind the image (:meth:`works`). ``before`` is how many text tokens come before the image.

            >>> from lookless import Plan
            >>> Plan.full(2).rows(visual=576, text=66)[-1]
            {'query': 642, 'key': 642, 'ffn': 642}
            >>> Plan.full(2).live().rows(visual=576, text=66, kept=1)[-1]
            {'query': 1, 'key': 642, 'ffn': 1}

        Raises:
            PlanError: the plan is not static.
        """
        each = zip(self.works(kept=kept is not None), self.alive(visual), strict=True)
        more = {"text": text, "visual": visual, "kept": kept or 0, "before": before}
        return tuple(work.rows(alive=alive, **more) for work, alive in each)

    def alive(self, visual: float) -> tuple[float, ...]:
        """Of each layer, how many of a prompt's ``visual`` tokens are alive in it.

        Raises:
            PlanError: the plan is not static.
        """
        if not self.is_static:
            raise PlanError(
                "this plan filters by what it sees in each prompt, so its rows are not known beforehand: count them "
                "with lookless.trace."
            )
        counts, alive = [], visual
        for row in self.layers:
            alive = row.keep.alive_after(visual, alive)
            counts.append(alive)
        return tuple(counts)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The numbers of the fitted cells, each once."""
        return tuple(dict.fromkeys(cell.weights for row in self.layers for cell in row.work.affine))

    def bound(self, weights: Mapping[str, Weights]) -> Plan:
        """This plan with the numbers of its fitted cells. Raises: PlanError: some are not among ``weights``."""
        missing = [each.name for each in self.weights if each.name not in weights]
        if missing:
            raise PlanError(f"the numbers {missing[0][:12]}... of a fitted cell of the plan are not beside it.")
        return Plan(**{**dict(self), "layers": tuple(row.bound(weights) for row in self.layers)})

    def check(self, geometry: Geometry) -> None:
        """Raises: PlanMismatchError: the plan is for another architecture than ``geometry``, which cannot run it."""
        self._check_fits(geometry.layers, geometry)
        check_cells(self.layers, geometry)

    def _check_fits(self, layers: int, geometry: Geometry | None) -> None:
        if len(self.layers) != layers:
            different = f"the plan has {len(self.layers)} layers and the model has {layers}"
            raise PlanMismatchError(f"{different}: use a plan made for this model, or calibrate one.")
        if self.geometry is not None and geometry is not None and self.geometry != geometry:
            raise PlanMismatchError(
                f"the plan is for another architecture ({self.geometry}) than the model's ({geometry}): "
                f"use a plan made for this model, or calibrate one."
            )

    def __str__(self) -> str:
        columns = self.columns
        table = [("layer", *columns)]
        table += [(str(i), *(str(getattr(row, column)) for column in columns)) for i, row in enumerate(self.layers)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(c.ljust(w) for c, w in zip(line[1:], widths[1:], strict=True)) for line in table)
        return "\n".join(f"{first[0]:>5}  {line}".rstrip() for first, line in zip(table, lines, strict=True))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns worth showing: attention and ffn, and any other that is not full everywhere."""
        used = {"attention", "ffn", *(column for row in self.layers for column in row.planned)}
        return tuple(column for column in COLUMNS if column in used)

    def to_json(self) -> str:
        """Sorted, versioned JSON; equal plans give equal bytes."""
        return files.dump(self)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``folder/lookless_plan.json`` whole or not at all, and return its path. The numbers of fitted cells go
        to ``folder/lookless_plan.safetensors``, written before it."""
        for name, content in self._files().items():
            files.write_bytes(Path(folder) / name, content)
        return Path(folder) / FILE_NAME

    def _files(self) -> dict[str, bytes]:
        """What is written, by name; the table comes last, so that no table is without its numbers."""
        numbers = {WEIGHTS_NAME: pack(self.weights)} if self.weights else {}
        return {**numbers, FILE_NAME: self.to_json().encode()}

    @classmethod
    def from_pretrained(cls, where: str | Path, *, revision: str | None = None) -> Plan:
        """The plan in a folder, in a JSON file, or in a repository of the hub; with the numbers that lie beside it.

        ``where`` is the path or ``owner/name``, and ``revision`` a branch, tag or commit of the repository.

        Raises:
            PlanError: there is none, it has an unknown key, a newer library wrote it, or its numbers are not there or
                not those that were saved.
        """
        path, repo = Path(where), None
        if path.is_dir():
            check_one_plan(path)
            path = path / FILE_NAME
        elif not path.exists() and not path.suffix and len(path.parts) == 2 and not path.is_absolute():
            if path.parent.is_dir():  # a hub that is asked for a misspelt folder takes half a minute to say no
                raise PlanError(f"no plan at '{where}': {path.parent} is a folder here, and has no {path.name} in it.")
            repo = str(where)
            path = files.download(repo, FILE_NAME, revision, PlanError)
        plan = files.load(path, cls, PlanError, SCHEMA_VERSION)
        if not plan.weights:
            return plan
        beside = path.with_suffix(".safetensors")
        return plan.bound(read(files.download(repo, WEIGHTS_NAME, revision, PlanError) if repo else beside))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload the plan to ``repo_id`` and return the commit's address.

        A repository that is not there is made, ``private`` or not. ``token`` may write; by default it is the user's.
        """
        message = f"lookless plan: {self.provenance.method or 'hand-made'}"
        return files.upload(self._files(), repo_id, message, private=private, token=token)


def _row(cells: dict[str, Any]) -> LayerPlan:
    try:
        return LayerPlan(**cells)
    except ValidationError as problem:
        column = str(problem.errors()[0]["loc"][0])
        raise PlanError(f"{cells[column]} ({type(cells[column]).__name__}) does not fit column {column}.") from problem
