"""All stages of a run, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..certification.certificate import Certificate
from ..certification.sequence import Tried, bound, certify
from ..plan import Plan
from ..search.front import Front
from .folder import Chain, Run
from .run import Optimization
from .summary import command, lines


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        run: its record.
        chain: the plans to test.
        certificate: of those tested; None where the search found none.
        plan: the one written to the folder; the full model's where none is certified.
        command: that uses it.
    """

    run: Run
    chain: Chain
    certificate: Certificate | None
    plan: Plan
    command: str


def complete(optimization: Optimization) -> Result:
    """Run every stage that has not been run, and write the plan.

    Raises:
        PlanError, DataError, ModelError: as the stages.
    """
    chain = optimization.chain()
    certificate = certified(optimization, chain)
    chosen = _chosen(certificate, chain)
    found = optimization.full if chosen is None else chain.points[chosen].plan
    plan = optimization.certifiable(found)
    plan.save_pretrained(optimization.folder.plan)
    prices = [one.price(chain.price) for one in Front.load(optimization.folder.front).candidates]
    optimization.save(chosen=chosen, lines=lines(optimization.run, chain, certificate, chosen, min(prices)))
    return Result(optimization.run, chain, certificate, plan, command(optimization.run, optimization.folder, plan))


def certified(optimization: Optimization, chain: Chain) -> Certificate | None:
    """Test the chain on samples that nothing was chosen by; of a budget, bound what its plan loses."""
    if not chain.points:
        return None
    run = optimization.run
    count = sum(len(task.certification) for task in optimization.tasks)
    with optimization.stage("test", f"testing up to {len(chain.points)} plans on {count} samples not seen so far"):
        if run.target.kind == "retention":
            found = certify(
                _tried(optimization, chain),
                level=1 - run.target.value,
                confidence=run.confidence,
                loss=run.loss,
                length=len(chain.points),
            )
        else:
            *_, last = _tried(optimization, chain)
            found = bound(last, confidence=run.confidence, loss=run.loss)
        found.save(optimization.folder.certificate)
    return found


def _tried(optimization: Optimization, chain: Chain) -> Iterator[Tried]:
    """The chain's plans with their answers, each answered when it is asked for."""
    for index in range(len(chain.points)):
        answers = optimization.evaluated(chain, index)
        yield Tried(f"point {index}", [answers[task] for task in optimization.run.tasks])


def _chosen(certificate: Certificate | None, chain: Chain) -> int | None:
    if certificate is None:
        return None
    if not certificate.asked:
        return len(chain.points) - 1
    return len(certificate.certified) - 1 if certificate.certified else None
