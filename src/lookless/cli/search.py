"""`lookless search`: a plan within a budget, by one of the searches."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import LooklessError
from .common import Json, ScoredDataOptions, app, one_sentence, print_json, spread
from .runs import RunOptions

#: The searches; a test compares them with :data:`lookless.optimize.searches.SEARCHES`, which needs torch.
METHODS = "joint|gsop|redundancylens|dop|operator-skipping|repair"
Method = Annotated[str, typer.Option(help="How to search.", metavar=METHODS)]
PlanDir = Annotated[
    str | None, typer.Option("--plan", help="With --method repair: the plan's folder, JSON file, or hub id.")
]
Tau = Annotated[
    float | None,
    typer.Option(
        help="With --method operator-skipping: a layer is silent if skipping both its operators risks at most so many "
        "nats (default 0.001).",
        min=0,
    ),
]


@app.command()
@one_sentence
@spread
def search(
    options: RunOptions,
    data_options: ScoredDataOptions,
    method: Method = "joint",
    plan_dir: PlanDir = None,
    tau: Tau = None,
    as_json: Json = False,
) -> None:
    """A plan within a budget, by the joint search of `optimize` or by the search of a paper. Nothing is certified.

    joint: every kind of change, measured together; steps 1 to 4 of `optimize`
    gsop: attention, FFN and visible keys of all layers, in greedy order
    redundancylens: less attention and fewer neurons, in greedy order of layers
    dop: two depths and a share of the tokens
    operator-skipping: what each layer lives by, and the rest skipped
    repair: a plan of yours, with the skips of layers exchanged

    Example: lookless search reference --data reference:chart --flops 0.5 --out my-run

    By another: lookless search reference --data reference:chart --flops 0.6 --method dop --out my-run
    """
    from ..optimize.begin import visit
    from ..optimize.folder import Target
    from ..optimize.searches import search_by_name
    from ..plan import Plan

    given = {"plan": plan_dir, "tau": tau, "latency": options.latency}
    _check(method, {**given, "proposals": options.proposals, "timed": options.timed}, options.engine)
    if (options.flops is None) == (options.latency is None):
        said = "none of them" if options.flops is None else "--flops and --latency"
        raise LooklessError(f"give one of --flops and --latency; {said} was given.")
    plan = None if plan_dir is None else Plan.from_pretrained(plan_dir)
    kind, value = ("latency", options.latency) if options.flops is None else ("flops", options.flops)
    reading = data_options.reading
    run = options.begin(visit, Target(kind=kind, value=value), reading=reading)  # type: ignore[arg-type]
    found = search_by_name(run, method, plan=plan, **({} if tau is None else {"tau": tau}))
    if as_json:
        print_json(found.record)
        return
    data = f"{options.data[0]} {reading}".strip()
    test = f"lookless eval {options.model} --data {data} --plan {found.folder}"
    for line in (str(found.plan), *found.lines, *found.summary, "", test):
        typer.echo(line)


def _check(method: str, given: dict[str, Any], engine: str) -> None:
    """Raises: LooklessError: there is no such search, or it does not take what is given."""
    from ..optimize.searches import SEARCHES

    if method not in SEARCHES:
        raise LooklessError(f"method {method!r} is not one of {', '.join(SEARCHES)}.")
    search = SEARCHES[method]
    for option, value in given.items():
        if value is not None and option not in search.options:
            takers = " and ".join(name for name, one in SEARCHES.items() if option in one.options)
            raise LooklessError(f"--{option} is for --method {takers}, and this is {method}: leave it out.")
    if "plan" in search.options and given["plan"] is None:
        raise LooklessError(f"{method} begins with a plan: name one with --plan.")
    if engine == "vllm" and not search.is_served:
        raise LooklessError(f"vLLM cannot serve what {method} finds: leave --engine out, or search otherwise.")
