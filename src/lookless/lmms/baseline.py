"""Prompts of the baseline: a task of lmms-eval may ask each model its own way, and looks that up by the name after
``--model``. ``lookless_X`` is asked what ``X`` is asked, or the two runs would not be comparable."""

from __future__ import annotations

import functools
from typing import Any

from ..errors import ModelError
from .names import PREFIX

#: The method of lmms-eval's tasks that chooses prompts, targets and generation settings by the model's name.
METHOD = "_prepare_model_specific_config"
#: Under this key a task's configuration names the plan.
KEY = "lookless_plan"


def follow_baseline(plan_hash: str | None) -> None:
    """From now on tasks that are made for ``lookless_X`` ask what they ask ``X``, and name the plan.

    lmms-eval makes its tasks after the model. It writes their configurations into its results, and its cache of answers
    (``--use_cache``) tells runs apart by them and by the words after ``--model_args``, which are the same when another
    plan was saved in the same folder.

    Raises:
        ModelError: this release of lmms-eval chooses prompts some other way.
    """
    from lmms_eval.api.task import ConfigurableTask

    method = getattr(ConfigurableTask, METHOD, None)
    if method is None:
        raise ModelError(
            f"this release of lmms-eval has no ConfigurableTask.{METHOD}, so its tasks would ask a model under a plan "
            f"something else than its baseline: install lmms-eval 0.7."
        )
    stock = getattr(method, "__wrapped__", method)

    @functools.wraps(stock)
    def prepare(task: Any) -> None:
        name = task.model_name
        if isinstance(name, str) and name.startswith(PREFIX):
            task.model_name = name.removeprefix(PREFIX)
            if plan_hash is not None:
                task.config.metadata = _with(task.config.metadata, {KEY: plan_hash})
        stock(task)

    setattr(ConfigurableTask, METHOD, prepare)


def _with(metadata: Any, more: dict[str, str]) -> Any:
    """A task's ``metadata``, which is a dictionary, a list of them, or whatever its author likes, and ``more``."""
    if isinstance(metadata, dict):
        return metadata | more
    return [*(metadata if isinstance(metadata, list) else [] if metadata is None else [metadata]), more]
