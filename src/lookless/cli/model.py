"""Commands that run a model: demo, calibrate, eval, generate and serve."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LooklessError
from .common import (
    OPEN,
    Data,
    DataOptions,
    Device,
    Dtype,
    Json,
    Model,
    Revision,
    ScoredDataOptions,
    app,
    asked_of,
    err,
    one_sentence,
    out,
    print_json,
    print_whole,
    spread,
)
from .outputs import Overwrite, new_file, new_files

if TYPE_CHECKING:
    from ..data import Sample, Samples
    from ..evaluation import Evaluation
    from ..loading import Loaded
    from ..plan import Plan
    from ..routing import PlanSet

PlanDir = Annotated[
    str | None, typer.Option("--plan", help="A plan's folder, JSON file, or hub id; or the folder of a plan set.")
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of that draw (default 0). It is recorded in the scores and plans.")
]
Position = Annotated[
    str,
    typer.Option(help="Compare output distributions at the `last` prompt token, or over the model's own `answer`."),
]
Measure = Annotated[
    list[str] | None,
    typer.Option(
        help="Which score to compute: visual_information_gain (default), ffn_effect, ...; a wrong name lists all. "
        "Repeatable: several share the full run of each sample, and --out is a folder."
    ),
]
Screen = Annotated[
    int | None,
    typer.Option(
        "--screen",
        metavar="N",
        help="Only identify the N lowest-scoring layers: estimate every layer with one backward pass, then measure "
        "the uncertain ones (several times faster).",
    ),
]


@app.command()
@one_sentence
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for plans, scores, figures and demo.json.")] = Path(
        "lookless-demo"
    ),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Calibrate, plan, apply and measure on the shipped reference model, task by task. About two minutes.

    Example: lookless demo --out my-first-look
    """
    from .. import demo as demonstration

    new_files(out_dir, ["demo.json"], overwrite)
    with err.status("starting") as status:
        result = demonstration.run_demo(out_dir, log=status.update if err.is_terminal else err.print)
    if as_json:
        print_json(result)
        return
    print_whole(demonstration.demo_table(result))
    out.print(
        f"[bold]{out_dir}[/]: profile.png shows which layers need their visual work, TASK/examples.png some "
        f"questions and answers; plans, scores and answers are beside them.\n"
        f"See a plan: lookless show {out_dir}/chart/plan\n"
        "With your own model and questions, the fastest plan that is certified to lose at most 1 % of the right "
        "answers: lookless optimize MODEL --data QUESTIONS.jsonl --retention 0.99 --out my-run",
        soft_wrap=True,
    )


@app.command()
@one_sentence
@spread
def calibrate(
    model: Model,
    data: Data,
    options: DataOptions,
    out_path: Annotated[
        Path, typer.Option("--out", help="JSON file for the scores; with several measures a folder, a file for each.")
    ],
    samples: Annotated[
        int, typer.Option(help="Number of samples; from a file, drawn at random from each task.", min=1)
    ] = 20,
    seed: Seed = None,
    position: Position = "last",
    measure: Measure = None,
    lowest: Screen = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Measure how much each layer matters to the answer; by default its visual attention (visual information gain).

    Example: lookless calibrate reference --data reference:chart --out scores.json

    For a plan that skips 7 layers: lookless calibrate reference --data reference:chart --screen 7 --out scores.json

    A run that was killed goes on from what it has measured.
    """
    from .. import terminal
    from ..calibration.gradients import scores_of_names
    from ..calibration.screening import screen
    from ..loading import load_model
    from ..unfinished import Unfinished

    measures = list(dict.fromkeys(measure or ["visual_information_gain"]))
    _check_calibration(measures, position, lowest)  # before the model is loaded
    if len(measures) > 1:
        new_files(out_path, [f"{name}.json" for name in measures], overwrite)
    else:
        new_file(out_path, overwrite)
    reading = options.reading
    chosen = reading.load(data, split="calibration", limit=samples, seed=seed)
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    chosen = asked_of(loaded, chosen, reading)
    kept = Unfinished.beside(out_path) if len(measures) == 1 else Unfinished.inside(out_path)
    if lowest is None:
        found = scores_of_names(loaded, chosen, measures, position=position, kept=kept)  # type: ignore[arg-type]
    else:
        wanted = dict.fromkeys(measures, lowest)
        found = screen(loaded, chosen, wanted, position=position, kept=kept)  # type: ignore[arg-type]
    paths = {name: out_path / f"{name}.json" if len(measures) > 1 else out_path for name in measures}
    for name, path in paths.items():
        found[name].save(path)
    if kept is not None:
        kept.remove()
    _warn_if_all_seen(chosen, data)
    if as_json:
        print_json(
            found[measures[0]] if len(measures) == 1 else {n: found[n].model_dump(mode="json") for n in measures}
        )
        return
    for name, path in paths.items():
        print_whole(terminal.scores_table(found[name]))
        out.print(f"saved to {path}{_next(name, path, lowest)}", soft_wrap=True)


def _check_calibration(measures: list[str], position: str, lowest: int | None) -> None:
    """Raises: LooklessError: there is no such position or measure, or the measure cannot be screened."""
    from ..calibration.gradients import DIAGNOSTICS
    from ..calibration.screening import check_screened
    from ..calibration.sweep import INTERVENTIONS, check_measure

    if position not in ("last", "answer"):
        raise LooklessError(f"position {position!r} is not one of last, answer.")
    for measure in measures:
        check_measure(measure, [*INTERVENTIONS, *DIAGNOSTICS])
        if lowest is not None:
            check_screened(measure)


def _warn_if_all_seen(chosen: Samples, data: str) -> None:
    from ..data import SeenWarning

    if chosen.drawn_from == len(chosen):
        warnings.warn(
            f"all {len(chosen)} lines of {data} were calibrated on, so none is left to test on: give fewer --samples.",
            SeenWarning,
            stacklevel=2,
        )


def _next(measure: str, scores: Path, lowest: int | None) -> str:
    """The command that makes a plan from the scores, if one method needs them alone."""
    from ..methods import METHODS

    if measure == "visual_information_gain":
        return f"; next: lookless plan v-skip --scores {scores} --layers {lowest or 'N'} --out PLAN_DIR"
    method = next((m.name for m in METHODS.values() if m.measures == (measure,)), None)
    return f"; next: lookless plan {method} --scores {scores} --out PLAN_DIR" if method else ""


@app.command("eval")
@one_sentence
@spread
def evaluate(
    model: Model,
    data: Data,
    options: ScoredDataOptions,
    plan_dir: PlanDir = None,
    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out", help="JSON file for the result. A run that was killed goes on from its finished batches."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Number of samples at most; from a file, the first.", min=1)] = None,
    include_seen: Annotated[
        bool,
        typer.Option("--include-seen", help="Also test on lines that the plan was calibrated on."),
    ] = False,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = 25,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 32,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """How many answers are right; with a plan also the share that is retained and the agreement with the dense model.

    Lines of a file that the plan was calibrated on are left out. Metrics and kinds of data are in docs/data.md.

    Example: lookless eval reference --data reference:chart --plan lookless-demo/chart/plan
    """
    from .. import terminal
    from ..answers import scored_by
    from ..files import dump, write_text
    from ..loading import load_model
    from ..unfinished import Unfinished

    reading = options.reading
    if out_path is not None:
        new_file(out_path, overwrite)
    plan = None if plan_dir is None else _plan_or_set(plan_dir)
    seen = () if plan is None or include_seen else plan.provenance.sample_hashes or ()
    chosen = scored_by(reading.load(data, limit=limit, without=seen))
    _warn_of_left_out(chosen, data)
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    chosen = asked_of(loaded, chosen, reading)
    kept = None if out_path is None else Unfinished.beside(out_path)
    result = _evaluated(loaded, chosen, plan, batch=batch, max_new_tokens=max_new_tokens, kept=kept)
    if out_path is not None:
        write_text(out_path, dump(result))
    if kept is not None:
        kept.remove()
    if as_json:
        print_json(result)
    else:
        print_whole(terminal.evaluation_table([result]))


def _plan_or_set(folder: str) -> Plan | PlanSet:
    from ..plan import Plan
    from ..sets import holds_set

    if not holds_set(folder):
        return Plan.from_pretrained(folder)
    from ..routing import PlanSet

    return PlanSet.from_pretrained(folder)


def _evaluated(loaded: Loaded, chosen: Samples, plan: Plan | PlanSet | None, **settings: Any) -> Evaluation:
    from ..evaluation import evaluate as measure
    from ..routing import PlanSet, evaluate_routed
    from ..runtime.families import geometry_of

    if isinstance(plan, PlanSet):
        return evaluate_routed(loaded, chosen, plan, **settings)
    if plan is not None:  # before the dense pass, which may take an hour
        plan.check(geometry_of(loaded.model))
    return measure(loaded, chosen, plan, **settings)


def _warn_of_left_out(chosen: Samples, data: str) -> None:
    from ..data import SeenWarning

    if chosen.left_out:
        warnings.warn(
            f"{chosen.left_out} lines of {data} are left out, because the plan was calibrated on them (--include-seen "
            f"takes them too).",
            SeenWarning,
            stacklevel=2,
        )


@app.command()
@one_sentence
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The question.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image; repeatable.")] = None,
    plan_dir: PlanDir = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 64,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Answer one question about an image.

    Example: lookless generate reference --image photo.png --prompt "what colour is the star?"
    """
    from ..data import Sample, Samples, load_image
    from ..evaluation import warn_if_idle
    from ..loading import load_model
    from ..runtime.patching import applied

    given = None if plan_dir is None else _plan_or_set(plan_dir)
    sample = Sample(tuple(load_image(path) for path in image or ()), prompt, "")
    with err.status(f"loading {model}"):
        loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    plan, route = _routed(loaded, sample, given)
    if plan is not None:
        warn_if_idle(plan, Samples("the prompt", (sample,)))
    with err.status("answering"), applied(loaded.model, plan):
        [answer] = loaded.answer([sample], max_new_tokens=max_new_tokens)
    if as_json:
        print_json({"prompt": prompt, "answer": answer, "plan": plan_dir} | ({"route": route} if route else {}))
    else:
        typer.echo(answer)


def _routed(loaded: Loaded, sample: Sample, given: Plan | PlanSet | None) -> tuple[Plan | None, str | None]:
    """The plan of ``sample``, and where a plan set routed it."""
    from ..routing import PlanSet, Router

    if not isinstance(given, PlanSet):
        return given, None
    router = Router(given, loaded)
    [route] = router.route_samples([sample])
    return router.plan(route), route.name


@app.command(context_settings=OPEN)
@one_sentence
def serve(
    ctx: typer.Context,
    model: Model,
    plan_dir: Annotated[str, typer.Option("--plan", help="A plan's folder, JSON file, or hub id.")],
) -> None:
    """Serve a model under a plan with vLLM and its OpenAI API. All other options are passed to vLLM.

    Example: lookless serve llava-hf/llava-1.5-7b-hf --plan my-plan --port 8000 --max-model-len 4096
    """
    from ..serving.launch import command

    words = command(model, plan_dir, ctx.args)
    os.execv(words[0], words)
