"""The three functions of vLLM that the plug-in wraps, once in each process, and a check that they are what they were.

* ``VllmConfig.__post_init__``: a wrong set-up is refused before any worker starts.
* ``BaseModelLoader.create_model``: the plan is put on a model that is built, before its weights are loaded.
* ``InputProcessor.process_inputs``: a request is refused.

Without a plan the wrappers do nothing.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from ..errors import ServingError
from ..plan import Plan
from .counters import Collector, ensure_folder
from .settings import Settings, check_request, keeps_text_apart, resolve

_MARK = "_lookless"


def install() -> None:
    """Wrap all three; a second call does nothing."""
    from vllm.config import VllmConfig
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.v1.engine.input_processor import InputProcessor

    if not hasattr(VllmConfig.__post_init__, _MARK):
        VllmConfig.__post_init__ = _after_config(VllmConfig.__post_init__)
    if not hasattr(BaseModelLoader.create_model, _MARK):
        BaseModelLoader.create_model = _after_creation(BaseModelLoader.create_model)
    if not hasattr(InputProcessor.process_inputs, _MARK):
        InputProcessor.process_inputs = _after_request(InputProcessor.process_inputs)


def _after_config(stock: Any) -> Any:
    @functools.wraps(stock)
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        stock(self, *args, **kwargs)
        settings = resolve(self)
        if settings is not None:
            check_internals()
            use_piecewise_graphs(self.compilation_config, settings.plan)
            _export_counts()

    setattr(__post_init__, _MARK, True)
    return __post_init__


def _after_creation(stock: Any) -> Any:
    @functools.wraps(stock)
    def create_model(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        model = stock(self, vllm_config, *args, **kwargs)
        settings = Settings.of(vllm_config)
        if settings is not None and not settings.plan.is_full:
            from vllm.config import set_current_vllm_config
            from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

            from .decoder import install_plan

            with set_current_vllm_config(vllm_config):
                install_plan(model, settings, vllm_config)
            record_metadata_for_reloading(model)  # again, with the projections that are split now
        return model

    setattr(create_model, _MARK, True)
    return create_model


def _after_request(stock: Any) -> Any:
    @functools.wraps(stock)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = stock(self, *args, **kwargs)
        settings = Settings.of(self.vllm_config)
        if settings is not None and not settings.plan.is_full:
            try:
                check_request(request)
            except ServingError as problem:  # vLLM reports only errors of its own class to a client
                from vllm.exceptions import VLLMValidationError

                raise VLLMValidationError(str(problem)) from problem
        return request

    setattr(process_inputs, _MARK, True)
    return process_inputs


def use_piecewise_graphs(config: Any, plan: Plan) -> None:
    """Full CUDA graphs replay a step without calling the model, which then cannot know which rows are visual.

    Args:
        config: vLLM's ``CompilationConfig``. Its graphs become those of the pieces between attentions, or none where
            the pieces would hold an attention, or what they write to the cache under a plan that has places of its own
            there.
        plan: the engine's.
    """
    from vllm.config import CompilationMode, CUDAGraphMode
    from vllm.logger import init_logger

    if not config.cudagraph_mode:
        return
    are_pieces = config.mode == CompilationMode.VLLM_COMPILE and config.splitting_ops_contain_attention()
    if keeps_text_apart(plan):
        are_pieces = are_pieces and config.splitting_ops_contain_kv_cache_update()
    wanted = CUDAGraphMode.PIECEWISE if are_pieces else CUDAGraphMode.NONE
    if config.cudagraph_mode != wanted:
        init_logger(__name__).info("lookless: full CUDA graphs cannot skip visual rows; using %s ones.", wanted.name)
        config.cudagraph_mode = wanted


@functools.cache
def _export_counts() -> None:
    """Report the counts on ``/metrics`` of this process; once, because a registry takes a name once."""
    from prometheus_client import REGISTRY
    from prometheus_client.multiprocess import MultiProcessCollector

    collector = Collector(ensure_folder())
    REGISTRY.register(collector)
    stock = MultiProcessCollector.collect

    def collect(self: Any) -> list[Any]:
        """With several API servers each request makes a new registry, which holds this collector alone."""
        return [*stock(self), *collector.collect()]

    MultiProcessCollector.collect = collect


def check_internals() -> None:
    """Raises: ServingError: a function of vLLM that the plug-in calls has lost a parameter that it needs."""
    from vllm.forward_context import ForwardContext
    from vllm.model_executor.layers.attention.attention import unified_attention_with_output, unified_kv_cache_update
    from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.model_executor.models.interfaces import SupportsMultiModal
    from vllm.v1.engine import EngineCoreRequest

    wanted = {
        SupportsMultiModal.embed_input_ids: {"input_ids", "multimodal_embeddings", "is_multimodal"},
        BaseModelLoader.create_model: {"vllm_config", "model_config"},
        unified_kv_cache_update: {"key", "value", "layer_name"},
        unified_attention_with_output: {"query", "key", "value", "output", "layer_name", "kv_cache_dummy_dep"},
        EngineCoreRequest: {"mm_features", "sampling_params"},
        ForwardContext: {"attn_metadata", "slot_mapping", "is_padding", "all_moe_layers"},
        QKVParallelLinear: {"hidden_size", "head_size", "total_num_heads", "total_num_kv_heads", "quant_config"},
        ColumnParallelLinear: {"input_size", "output_size", "quant_config"},
    }
    for what, names in wanted.items():
        missing = names - set(inspect.signature(what).parameters)
        if missing:
            raise ServingError(
                f"vLLM's {what.__qualname__} has no parameter {min(missing)!r} any more, which a lookless plan needs: "
                f"install the version that this plug-in was written for."
            )
