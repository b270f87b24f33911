"""The result in a few lines, and the command that uses the plan."""

from __future__ import annotations

from ..certification.bounds import exact_least
from ..certification.certificate import Certificate, PlanTest
from ..errors import PlanError
from ..plan import Plan
from ..serving.settings import check_plan
from .folder import Chain, Folder, Run

WHAT = {"lost": "right answers", "changed": "answers"}
DONE = {"lost": "lost", "changed": "changed"}


def lines(
    run: Run, chain: Chain, certificate: Certificate | None, chosen: int | None, cheapest: float = 1.0
) -> tuple[str, ...]:
    """What was found, for somebody who has not read a paper.

    Args:
        run, chain: what was to be done, and the plans tested.
        certificate: of the tests; None where there was no plan to test.
        chosen: the chain's plan that is the result; None: not one.
        cheapest: the price of the cheapest plan that the search ran.
    """
    where = ", ".join(data.data for data in run.data)
    if certificate is None and run.target.kind != "retention":
        return (
            f"{run.model} on {where}: no plan was found within {run.target.value:.0%} of {_price(run)}, so the full "
            f"model stays. The cheapest that was run takes {cheapest:.0%}.",
        )
    if certificate is None or chosen is None:
        return (f"{run.model} on {where}: no plan is certified, so the full model stays.", *_why(run, certificate))
    test = certificate.tests[-1] if not certificate.asked else certificate.tests[chosen]
    point = chain.points[chosen]
    time = "" if point.time is None else f", about {point.time:.0%} of its time on this machine"
    found = (
        f"{run.model} on {where}: the plan runs {point.kept:.0%} of the FLOPs of a prefill{time}.",
        _tested(run, test),
        _promise(run, certificate),
        _next(run, chain, certificate, chosen),
    )
    return found if len(run.data) == 1 else (*found[:2], _worst(run, test), *found[2:])


def _price(run: Run) -> str:
    return "the time on this machine" if run.target.price == "time" else "the FLOPs"


def _tested(run: Run, test: PlanTest) -> str:
    bad, n = sum(task.bad for task in test.tasks), sum(task.n for task in test.tasks)
    kept = f" ({1 - bad / n:.1%} kept)" if n else ""
    return f"Tested on {n} questions that nothing was chosen by: {bad} {WHAT[run.loss]} {DONE[run.loss]}{kept}."


def _worst(run: Run, test: PlanTest) -> str:
    return f"The worst of {len(test.tasks)} tasks is {test.worst.task}: {test.worst.bad} of {test.worst.n}."


def _promise(run: Run, certificate: Certificate) -> str:
    on = "" if len(run.data) == 1 else " of any task"
    said = f"with {run.confidence:.0%} confidence at most {certificate.level:.1%} of the {WHAT[run.loss]}{on}"
    if certificate.asked:
        return f"Certified: {said} are {DONE[run.loss]}."
    return f"What can be promised: {said} are {DONE[run.loss]}."


def _next(run: Run, chain: Chain, certificate: Certificate, chosen: int) -> str:
    if not certificate.asked:
        return "It is the plan that lost least within the budget, on the samples that chose it."
    if certificate.failed is None:
        return "It is the cheapest of the plans tested; none failed."
    point, worst = chain.points[chosen + 1], certificate.failed.worst
    return (
        f"The next plan ({point.price(chain.price):.0%} of the {'time' if chain.price == 'time' else 'FLOPs'}) failed: "
        f"{worst.bad} of {worst.n} {WHAT[run.loss]} {DONE[run.loss]}."
    )


def _why(run: Run, certificate: Certificate | None) -> tuple[str, ...]:
    if certificate is None:
        return ("The search found no plan within what was asked that costs less.",)
    test, level = certificate.tests[0], 1 - run.target.value
    seen = f"{test.worst.bad} of {test.worst.n} {WHAT[run.loss]}"
    said = f"The mildest plan {DONE[run.loss]} {seen} (p = {test.p_value:.2g})."
    least = exact_least(level, run.confidence)
    if test.worst.n < least:
        return (
            said,
            f"There are too few questions: to promise {run.target.value:.2%} with {run.confidence:.0%} confidence "
            f"takes {least} that count of each task if none is lost, and more if some are.",
        )
    if test.needed is not None:
        return (said, f"About {test.needed} questions of each task would do, if the loss stayed what it is.")
    return (said, "It loses more than was allowed: allow more, or more samples to choose by.")


def command(run: Run, folder: Folder, plan: Plan) -> str:
    """How to use the plan: served by vLLM if vLLM can run it, else in transformers."""
    try:
        check_plan(plan)
    except PlanError:
        return f"lookless generate {run.model} --plan {folder.plan} --image IMAGE --prompt QUESTION"
    return f"lookless serve {run.model} --plan {folder.plan}"
