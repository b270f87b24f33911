"""Which plan an engine runs, and what is refused because it would run wrong."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PlanError, ServingError
from ..geometry import Geometry
from ..layer_plan import LayerPlan
from ..plan import Plan
from ..weights import pack, unpack

KEY = "lookless"
VERSION = "0.32."
#: keep, visible, decode, before: what a paged cache cannot do, and why
REASONS = {
    "keep": "a chunk of a prompt would have to choose its tokens before the rest of it is known",
    "visible": "a paged cache is read by whole blocks, which hold visual and text keys side by side",
    "decode": "a paged cache holds every token",
    "before": "the cache shares keys of text before an image with prompts that hold none, in which it is not frozen",
}
BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")
LOADERS = ("auto", "hf", "safetensors", "pt", "npcache", "dummy", "fastsafetensors", "mistral", "runai_streamer")
#: Families whose decoder layers in vLLM are those that :mod:`lookless.serving.layers` knows.
SERVED = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "internvl",
)


@dataclass(frozen=True)
class Settings:
    """What travels with vLLM's configuration to every process.

    Attributes:
        plan: the plan, as given; of its fitted cells it has the names of the numbers and not the numbers.
        numbers: the numbers, as in the file beside the plan, in base64; empty without fitted cells.
    """

    plan: Plan
    numbers: str

    @classmethod
    def of(cls, vllm_config: Any) -> Settings | None:
        """What :func:`resolve` stored in ``vllm_config``; None without a plan."""
        config = vllm_config.additional_config
        found = config.get(KEY) if isinstance(config, dict) else None
        if not isinstance(found, dict) or "table" not in found:
            return None
        return cls(Plan.model_validate_json(found["table"]), found["numbers"])

    def bound_plan(self) -> Plan:
        """The plan with the numbers of its fitted cells.

        Raises:
            PlanError: they are not those that were saved.
        """
        if not self.plan.weights:
            return self.plan
        return self.plan.bound(unpack(b64decode(self.numbers), "what the engine was given"))


def resolve(vllm_config: Any) -> Settings | None:
    """Read the plan that the user or the checkpoint names, check it, and store it in ``vllm_config``.

    The table and the numbers of fitted cells themselves are stored, not their path. So workers on other machines need
    no file, and vLLM's cache of compiled graphs, whose key is made of the configuration as JSON, keeps plans apart.

    Returns:
        the settings; None if no plan is named, or it is stored already.

    Raises:
        PlanError: the plan cannot be read, or vLLM cannot serve it.
        PlanMismatchError: the plan is for another architecture, or its fitted cells for other hidden states.
        ModelError: the model's family is not supported.
        ServingError: the engine is set up so that the plan would run wrong.
    """
    model = vllm_config.model_config
    if model is None or getattr(model, "is_submodel_config", False) or Settings.of(vllm_config) is not None:
        return None
    where = _plan_path(vllm_config.additional_config, model)
    if where is None:
        return None
    plan = Plan.from_pretrained(where)
    check_plan(plan)
    from ..runtime.affine import check_weights
    from ..runtime.families import family_of

    family_of(model.hf_config)
    if (model_type := model.hf_config.model_type) not in SERVED:
        raise ServingError(
            f"plans for models of type {model_type!r} run in transformers and were never tried in vLLM, where its "
            f"layers are others; served are {', '.join(SERVED)}."
        )
    geometry = Geometry.from_config(model.hf_config)
    plan.check(geometry)
    check_layers(plan, geometry)
    check_weights(plan, geometry.hidden)
    check_engine(plan, geometry, vllm_config)
    vllm_config.additional_config = {**vllm_config.additional_config, KEY: entry(plan, where)}
    return Settings.of(vllm_config)


def entry(plan: Plan, where: Path | str) -> dict[str, str]:
    """What :meth:`Settings.of` finds in the configuration, of a plan that was read from ``where``."""
    numbers = b64encode(pack(plan.weights)).decode() if plan.weights else ""
    return {"plan": str(where), "table": plan.to_json(), "numbers": numbers}


def _plan_path(config: Any, model: Any) -> Path | str | None:
    """Where the plan is; a path in a checkpoint's ``config.json`` is relative to the checkpoint."""
    if isinstance(config, dict) and config.get(KEY):
        return _path(config[KEY], "--additional-config")
    named = getattr(model.hf_config, KEY, None)
    if not named:
        return None
    where = _path(named, "the checkpoint's config.json")
    return inside if (inside := Path(model.model) / where).exists() else where


def _path(entry: Any, where: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("plan"), str):
        raise ServingError(f'{where} has {KEY}: {entry!r}; it wants {{"plan": "PLAN_DIR"}}.')
    unknown = sorted(set(entry) - {"plan"})
    if unknown:
        raise ServingError(f"{where} has the unknown key {unknown[0]!r} under {KEY}; only 'plan' is known.")
    return str(entry["plan"])


def check_plan(plan: Plan) -> None:
    """Raises: PlanError: an engine cannot run some cell, or not in its column."""
    for index, row in enumerate(plan.layers[: withdrawn_from(plan)]):
        for column, reason in REASONS.items():
            if not getattr(row, column).is_full and not (column == "visible" and is_blind(row)):
                raise PlanError(
                    f"layer {index} of the plan has {column}: {getattr(row, column)}, and vLLM cannot serve that: "
                    f"{reason}. Use a plan that skips attention or FFN."
                )
        for column in ("attention", "ffn"):
            if not getattr(row, column).is_served:
                raise PlanError(
                    f"layer {index} of the plan has {column}: {getattr(row, column)}, and vLLM serves Full, Skip, Mean "
                    f"and Linear alone: use one of these, or run the plan in transformers."
                )


def withdrawn_from(plan: Plan) -> int:
    """The first layer that no visual token reaches; as many as there are layers where they reach all."""
    layers = plan.layers
    return next((index for index, row in enumerate(layers) if row.keep.withdraws), len(layers))


def is_blind(row: LayerPlan) -> bool:
    """Whether nobody reads the visual keys of a layer that visual tokens reach."""
    return row.visible.visual == "none" and row.attention.visual == "none"


def keeps_text_apart(plan: Plan) -> bool:
    """Whether the cache of some layer holds text alone."""
    return withdrawn_from(plan) < len(plan.layers) or any(map(is_blind, plan.layers))


def check_request(request: Any) -> None:
    """Raises: ServingError: of a prompt with an image a request wants log-probabilities, which it cannot have under a
    plan: visual rows are not finished in the last layer, and the first text token after an image is predicted from one.
    """
    if request.mm_features and getattr(request.sampling_params, "prompt_logprobs", None) is not None:
        raise ServingError(
            "prompt_logprobs of a prompt with an image are not the model's under a lookless plan: leave "
            "prompt_logprobs out, or serve without the plan."
        )


def live_rows(plan: Plan, vllm_config: Any) -> tuple[LayerPlan, ...]:
    """The rows of ``plan`` without dead work.

    With quantised weights the attention stays as planned, dead or not: where it runs on some rows alone its projection
    is split, which a quantised one cannot be.
    """
    live = plan.live().layers
    if vllm_config.quant_config is None:
        return live
    pairs = zip(live, plan.layers, strict=True)
    return tuple(row.model_copy(update={"attention": planned.attention}) for row, planned in pairs)


def check_layers(plan: Plan, geometry: Geometry) -> None:
    """Raises: PlanError: a layer's kernel in vLLM cannot run a cell that the plan has for it."""
    if keeps_text_apart(plan) and any(geometry.delta_of(layer) is not None for layer in range(geometry.layers)):
        raise PlanError(
            f"the plan leaves visual keys out of some layers, and {geometry.model_type} has gated delta rules, whose "
            f"kernel in vLLM writes and reads the state for all rows at once: leave keep and visible Full, or run the "
            f"plan in transformers."
        )
    for index, row in enumerate(plan.layers):
        if row.attention.visual == "none" and geometry.delta_of(index) is not None:
            raise PlanError(
                f"layer {index} of the plan has attention: {row.attention}, and that layer of {geometry.model_type} is "
                f"a gated delta rule, whose kernel in vLLM writes and reads the state for all rows at once: leave its "
                f"attention Full, or run the plan in transformers."
            )


def check_engine(plan: Plan, geometry: Geometry, vllm_config: Any) -> None:
    """Raises: ServingError: with this set-up of the engine the plan would run wrong, or is not known to run."""
    import vllm
    from vllm import envs

    experts = any(geometry.experts_of(layer) is not None for layer in range(geometry.layers))

    parallel = vllm_config.parallel_config
    skips_attention = any(row.attention.visual == "none" for row in plan.layers)
    multimodal, offload = vllm_config.model_config.multimodal_config, vllm_config.offload_config
    refused = {
        f"vLLM {vllm.__version__}; the plug-in is written for {VERSION}*": not vllm.__version__.startswith(VERSION),
        "pipeline parallelism: later stages do not know which tokens are visual": parallel.pipeline_parallel_size > 1,
        "decode context parallelism": getattr(parallel, "decode_context_parallel_size", 1) > 1,
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "breakable CUDA graphs, which replay a step without calling the model (VLLM_USE_BREAKABLE_CUDAGRAPH=0 turns "
        "them off)": envs.VLLM_USE_BREAKABLE_CUDAGRAPH,
        "dual batch overlap": bool(getattr(parallel, "enable_dbo", False)),
        "speculative decoding: the draft model does not know the plan": vllm_config.speculative_config is not None,
        "a KV transfer between engines": vllm_config.kv_transfer_config is not None,
        f"the load format {vllm_config.load_config.load_format!r}": str(vllm_config.load_config.load_format)
        not in LOADERS,
        "weights offloaded to the CPU: an offloader calls the layers' own forward": offload.uva.cpu_offload_gb > 0
        or offload.prefetch.offload_group_size > 0,
        "the Transformers modelling backend": vllm_config.model_config.model_impl in ("transformers", "terratorch"),
        "an eight-bit cache of keys and values": str(vllm_config.cache_config.cache_dtype).startswith(("fp8", "int8")),
        "LoRA adapters, which are found by a row's place in the batch": not plan.is_full
        and bool(vllm_config.lora_config),
        "prefix caching, together with a plan under which some layers keep text alone, not in the place that a prefix "
        "has (--no-enable-prefix-caching turns it off)": keeps_text_apart(plan)
        and bool(vllm_config.cache_config.enable_prefix_caching),
        "quantised weights together with a plan that skips attention": skips_attention
        and vllm_config.quant_config is not None,
        "experts spread over ranks, which exchange rows that a plan leaves out": experts
        and (parallel.data_parallel_size > 1 or parallel.enable_expert_parallel),
        "routed experts returned with the answers": vllm_config.aux_output_config.enable_return_routed_experts,
        "pruning of visual tokens by the engine": multimodal is not None
        and bool(getattr(multimodal, "video_pruning_rate", None)),
    }
    for what, found in refused.items():
        if found:
            raise ServingError(f"a lookless plan cannot be served with {what}. Serve without it, or without the plan.")
