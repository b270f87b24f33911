"""The one idea: a method is a table with one row per decoder layer.

A decoder layer does two things to a visual token: it lets the token *attend* and it *transforms* it. Every
training-free method in the field chooses, layer by layer, which visual tokens take part in what. So a method
is not code inside a model, it is data::

    layer   attention   ffn          a visual token in this layer ...
    0       full        full         asks, is read, is transformed: the model as it was trained
    1       skip        full         does not ask (V-Skip); its keys and values stay readable
    2       full        skip         is not transformed (FFN-Skip)
    3       skip        skip         passes by on the residual stream: frozen (ShortV)

Text tokens always take part in everything. A :class:`Plan` is that table and where it came from. It is frozen,
has no torch in it, prints as a table, and saves as sorted, versioned JSON::

    plan = Plan.full(geometry).at([7, 8, 9], attention=Skip())
    plan.save_pretrained("my_plan")
    with lookless.apply(model, plan):
        model.generate(**inputs)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from . import files
from .errors import PlanError, PlanMismatchError
from .geometry import Geometry
from .version import __version__

SCHEMA_VERSION = 1
FILE_NAME = "lookless_plan.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Full(_Frozen):
    """The operator runs on every visual token, as the model was trained."""

    kind: Literal["full"] = "full"

    def __str__(self) -> str:
        return "full"


class Skip(_Frozen):
    """The operator runs on no visual token: they pass by on the residual stream.

    As a layer's ``attention``: visual tokens ask nothing, so no query, no attention and no output projection is
    computed for them; their keys and values are computed and cached, and text reads them. This is V-Skip's bypass
    (arXiv 2606.08511, Eq. 6) in the reading "no attention output". Two other readings of that equation exist. As
    printed it adds ``LN(H_V)`` to the residual stream, which costs the same and changes the states; taken as the
    "heterogeneous mask" of its text, visual tokens still attend to the text before them, which needs their
    queries and output projections and contradicts the FLOPs the paper reports (8.43 and not 7.69 TFLOPs on
    LLaVA-1.5-7B with 19 layers). Dropping the branch is the only reading that gives 7.69, and what ShortV
    (arXiv 2504.00502) and operator skipping (arXiv 2606.31903) do in the code they released.

    As a layer's ``ffn``: visual tokens are not transformed.
    """

    kind: Literal["skip"] = "skip"

    def __str__(self) -> str:
        return "skip"


Cell = Annotated[Full | Skip, Field(discriminator="kind")]
COLUMNS = ("attention", "ffn")


class LayerPlan(_Frozen):
    """What visual tokens do in one layer."""

    attention: Cell = Full()
    ffn: Cell = Full()

    @property
    def is_full(self) -> bool:
        return self == LayerPlan()


class Provenance(_Frozen):
    """Where a plan came from; every field may be unknown.

    Attributes:
        method: the method's name in ``lookless.methods``.
        knobs: its arguments.
        model: the model calibrated on, a hub id or a folder's name.
        revision: the hub commit of ``model``.
        data: what was calibrated on, for a reader.
        data_hash: sha256 of the calibration samples, 16 hex digits.
        samples: how many there were.
        lookless_version: of the library that made the plan.
    """

    method: str | None = None
    knobs: dict[str, int | float | str] = {}
    model: str | None = None
    revision: str | None = None
    data: str | None = None
    data_hash: str | None = None
    samples: int | None = None
    lookless_version: str = __version__


class Plan(_Frozen):
    """A table with one row per decoder layer, and where it came from.

    Attributes:
        layers: one :class:`LayerPlan` per decoder layer, first layer first.
        geometry: the architecture the plan is for; ``None`` fits any model with as many layers.
        provenance: how it was made.
    """

    schema_version: int = SCHEMA_VERSION
    layers: tuple[LayerPlan, ...] = Field(min_length=1)
    geometry: Geometry | None = None
    provenance: Provenance = Provenance()

    @classmethod
    def full(cls, model: Geometry | int) -> Plan:
        """The plan that changes nothing, for an architecture or for a number of layers."""
        if isinstance(model, Geometry):
            return cls(layers=(LayerPlan(),) * model.layers, geometry=model)
        return cls(layers=(LayerPlan(),) * model)

    def at(self, layers: Iterable[int], **cells: Full | Skip) -> Plan:
        """This plan with ``cells`` (``attention=``, ``ffn=``) set in ``layers``.

        Raises:
            PlanError: a layer that is not there, or a column that is not one.
        """
        unknown = sorted(set(cells) - set(COLUMNS))
        if unknown:
            raise PlanError(f"a plan has no column {unknown[0]!r}; its columns are {', '.join(COLUMNS)}.")
        rows = list(self.layers)
        for layer in layers:
            if not 0 <= layer < len(rows):
                raise PlanError(f"layer {layer} is not in a plan of {len(rows)} layers (0 to {len(rows) - 1}).")
            rows[layer] = rows[layer].model_copy(update=cells)
        return self.model_copy(update={"layers": tuple(rows)})

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
                if a != Full() and b != Full():
                    raise PlanError(
                        f"both plans set {column} of layer {layer} ({a} and {b}): drop it from one of them."
                    )
                row[column] = b if a == Full() else a
            rows.append(LayerPlan(**row))
        names = [p.provenance.method or "a plan" for p in (self, other)]
        provenance = Provenance(method=" | ".join(names), model=self.provenance.model or other.provenance.model)
        return Plan(layers=tuple(rows), geometry=self.geometry or other.geometry, provenance=provenance)

    @property
    def is_full(self) -> bool:
        """Whether the plan changes nothing."""
        return all(row.is_full for row in self.layers)

    def skipped(self, column: str) -> tuple[int, ...]:
        """The layers whose ``column`` is :class:`Skip`."""
        return tuple(i for i, row in enumerate(self.layers) if getattr(row, column) == Skip())

    def rows(self, visual: float, text: float) -> tuple[dict[str, float], ...]:
        """Per layer, how many tokens of a prompt are ``query``, ``key`` and ``ffn`` rows under this plan.

        The prices of :mod:`lookless.flops` are of these rows, and ``lookless.trace`` counts them. Means over prompts
        may be fractions.
        """
        n = visual + text
        return tuple(
            {
                "query": text if row.attention == Skip() else n,
                "key": n,
                "ffn": text if row.ffn == Skip() else n,
            }
            for row in self.layers
        )

    def check(self, geometry: Geometry) -> None:
        """Raises: PlanMismatchError: the plan was made for another architecture than ``geometry``."""
        self._check_fits(geometry.layers, geometry)

    def _check_fits(self, layers: int, geometry: Geometry | None) -> None:
        if len(self.layers) != layers:
            raise PlanMismatchError(
                f"the plan has {len(self.layers)} layers and the model has {layers}: "
                f"use a plan made for this model, or calibrate one."
            )
        if self.geometry is not None and geometry is not None and self.geometry != geometry:
            raise PlanMismatchError(
                f"the plan is for another architecture ({self.geometry}) than the model's ({geometry}): "
                f"use a plan made for this model, or calibrate one."
            )

    def __str__(self) -> str:
        lines = [f"{'layer':>5}  {'attention':<9}  ffn"]
        lines += [f"{i:>5}  {row.attention!s:<9}  {row.ffn}" for i, row in enumerate(self.layers)]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Sorted, versioned JSON; equal plans give equal bytes."""
        return files.dump(self)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``folder/lookless_plan.json`` whole or not at all, and return its path."""
        path = Path(folder) / FILE_NAME
        files.write_text(path, self.to_json())
        return path

    @classmethod
    def from_pretrained(cls, where: str | Path, *, revision: str | None = None) -> Plan:
        """The plan in a folder, in a JSON file, or in a repository of the hub.

        Raises:
            PlanError: there is none, it has an unknown key, or a newer library wrote it.
        """
        path = Path(where)
        if path.is_dir():
            path = path / FILE_NAME
        elif not path.exists() and not path.suffix and len(path.parts) == 2 and not path.is_absolute():
            path = _download(str(where), revision)
        return files.load(path, cls, PlanError, SCHEMA_VERSION)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload the plan to ``repo_id`` and return the commit's address. Needs a write token."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=self.to_json().encode(),
            path_in_repo=FILE_NAME,
            repo_id=repo_id,
            commit_message=f"lookless plan: {self.provenance.method or 'hand-made'}",
        )
        return str(commit.commit_url)


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, FILE_NAME, revision=revision))
    except Exception as problem:  # the hub's own errors, and those of every transport below it
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise PlanError(
            f"no plan at {repo_id!r}: there is no such folder here, and the hub did not give {FILE_NAME} ({reason})."
        ) from None
