"""What is mixed into a chat class of lmms-eval: the plan is put on the model, and nothing else is changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import LooklessError, ModelError, PlanError
from ..geometry import Geometry
from ..loading import check_folder
from ..plan import Plan
from ..reference import NAMES
from ..runtime.families import family_of, locate
from ..runtime.patching import apply
from ..runtime.tracing import OPERATORS, trace
from .baseline import follow_baseline


class Planned:
    """Mixed in before one of lmms-eval's chat classes.

    Attributes:
        plan: what runs; None is the stock class.
    """

    plan: Plan | None

    def __init__(self, pretrained: str | None = None, *, plan: str | None = None, **settings: Any) -> None:
        """
        Args:
            pretrained: a folder, a hub id, or the name of a shipped model.
            plan: a plan's folder, JSON file, or hub id.
            settings: of lmms-eval's class.

        Raises:
            PlanError: there is no such plan.
            PlanMismatchError: it is for another architecture.
            ModelError: there is no such model, or its family is not supported.
        """
        self.plan = None if plan is None else _read(plan)
        if pretrained is not None:
            settings["pretrained"] = where = str(NAMES.get(pretrained, pretrained))
            check_folder(where)
            if self.plan is not None:
                _check_fits(self.plan, where, settings.get("revision"))
        super().__init__(**settings)
        if self.plan is not None:
            model = self.model  # type: ignore[attr-defined]
            apply(model, self.plan)
            model.generate = _failing_aloud(model.generate)
        follow_baseline(None if self.plan is None else self.plan.hash)

    @classmethod
    def create_from_arg_string(cls, *args: Any, **kwargs: Any) -> Any:
        """How lmms-eval's command line makes a model: what is refused ends it with one sentence and exit code 2. It
        would print the traceback of any other exception, and exit with 0."""
        try:
            return super().create_from_arg_string(*args, **kwargs)  # type: ignore[misc]
        except LooklessError as refusal:
            print(f"lookless: {refusal}", file=sys.stderr)
            raise SystemExit(2) from refusal

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """As the class's own, which answers ``requests``; then tells which share of the stock model's rows ran.

        Raises:
            Exception: what was raised in ``generate``; some classes of lmms-eval would log it, and take the answer for
                an empty one.
        """
        if self.plan is None:
            return super().generate_until(requests)  # type: ignore[misc]
        try:
            with _shares(self.model) as shares:  # type: ignore[attr-defined]
                answers = super().generate_until(requests)  # type: ignore[misc]
        except _Failed as failed:
            problem = failed.problem
        else:
            _tell(shares)
            return answers
        raise problem


def _read(where: str) -> Plan:
    """Raises: PlanError: no place is named, as where a variable of the shell is not set, or no plan is there."""
    if not str(where):
        raise PlanError("plan= names no plan: give its folder, or leave plan= out to run the stock model.")
    return Plan.from_pretrained(str(where))


def _check_fits(plan: Plan, where: str, revision: str | None) -> None:
    """Before gigabytes are read.

    Raises:
        ModelError: the configuration cannot be read, or the family is not supported.
        PlanMismatchError: the plan is for another architecture.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
    except Exception as problem:  # any content of a folder, and any error of the hub
        raise ModelError(f"{where} cannot be loaded: {' '.join(str(problem).split())}") from problem
    family_of(config)
    plan.check(Geometry.from_config(config))


class _Failed(BaseException):
    """``problem``, on its way through a loop that catches every ``Exception``."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(problem)
        self.problem = problem


def _failing_aloud(generate: Any) -> Any:
    def aloud(*args: Any, **kwargs: Any) -> Any:
        try:
            return generate(*args, **kwargs)
        except Exception as problem:
            raise _Failed(problem) from problem

    return aloud


@contextmanager
def _shares(model: nn.Module) -> Iterator[dict[str, float]]:
    """While the block runs, count rows; after it, the result has the share of the stock model's rows that each of
    :data:`OPERATORS` ran on: those that entered the decoder, in every layer."""
    located, entered = locate(model), 0

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal entered
        x: Tensor = next(x for x in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args) if x is not None)
        entered += x.shape[:2].numel()

    shares: dict[str, float] = {}
    hook = located.decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with trace(model) as counted:
            yield shares
    finally:
        hook.remove()
    stock = entered * len(counted.layers)
    if stock:
        shares |= {operator: sum(row[operator] for row in counted.layers) / stock for operator in OPERATORS}


def _tell(shares: dict[str, float]) -> None:
    """Into lmms-eval's log, and its results: ``throughput`` has the mean over calls, ``avg_lookless_query_rows``."""
    from lmms_eval.models.model_utils.gen_metrics import log_metrics
    from loguru import logger

    if not shares:  # no request, or answers that another layer had cached
        return
    log_metrics(0.0, 0, 0.0, {f"lookless_{operator}_rows": share for operator, share in shares.items()})
    words = ", ".join(f"{share:.1%} of {operator} rows" for operator, share in shares.items())
    if min(shares.values()) < 1:
        logger.info(f"lookless: the plan ran on {words} of the stock model.")
    else:
        logger.warning(f"lookless: the plan skipped nothing ({words}): it is a full plan, or no prompt has an image.")
