"""A plan inside lmms-eval: its own model classes, prompts, filters and metrics, with a plan on the model.

    lmms-eval --model lookless_qwen3_vl --model_args pretrained=MODEL,plan=PLAN_DIR --tasks chartqa,pope

``manifests`` is lmms-eval's entry point (group ``lmms_eval.models``). Without ``plan=`` the model is lmms-eval's own.

* :mod:`lookless.lmms.classes` makes ``lookless_X`` of lmms-eval's chat class ``X``, when it is asked for;
* :mod:`lookless.lmms.planned` is what is mixed in: it puts the plan on, and counts what ran;
* :mod:`lookless.lmms.baseline` lets tasks ask ``lookless_X`` what they ask ``X``;
* :mod:`lookless.lmms.export` writes our own data as tasks, whose functions are in :mod:`lookless.lmms.task`.
"""

from __future__ import annotations

from typing import Any

from .names import CLASSES, PREFIX


def manifests() -> list[Any]:
    """What lmms-eval lists; called whenever it starts, so nothing heavy is imported."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(PREFIX + name, chat_class_path=f"{__name__}.classes.{name}") for name in CLASSES]
