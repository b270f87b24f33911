"""Commands that measure: time plans, and compare methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LooklessError, PlanError
from .common import (
    MOST_PROMPTS,
    MOST_TOKENS,
    Device,
    Dtype,
    Json,
    app,
    err,
    one_sentence,
    out,
    print_json,
    print_whole,
    writable,
)

if TYPE_CHECKING:
    from ..bench.traffic_client import Traffic


@app.command()
@one_sentence
def table(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="By default the shipped ones.")
    ] = None,
    out_path: Annotated[
        Path, typer.Option("--out", help="The document, Markdown; what else stands in it stays.")
    ] = Path("results.md"),
    work: Annotated[
        Path, typer.Option(help="Folder for scores and outcomes; a table that was cut off goes on from it.")
    ] = Path("lookless-table"),
    budget: Annotated[
        list[float] | None, typer.Option(help="Share of FLOPs at which all are compared: 0.6.", min=0.01, max=1)
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--method", help="Only this method; may be repeated.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Tasks, as for eval; by default the shipped six.")] = None,
    questions: Annotated[int, typer.Option(help="Questions of each task.", min=2)] = 60,
    samples: Annotated[int, typer.Option(help="Calibration samples of each task.", min=1)] = 20,
    machine: Annotated[str, typer.Option(help="What it ran on, a sentence for the document.")] = "",
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Run every method at its paper's relative depth and at one budget, and write what each keeps and costs.

    Over an hour on two cores for both shipped models. Example: lookless table reference --method v-skip --method fastv
    """
    from .. import figures, files, reference
    from ..comparison import document as results
    from ..comparison.run import check_budgets, run_table
    from ..loading import load_model
    from ..methods import all_methods

    check_budgets(budget or [])
    figure = out_path.parent / "images" / f"{out_path.stem}.png"
    for path in (out_path, figure):
        writable(path, folder=False)
    folders = {model: work / model.replace("/", "-") for model in models or reference.NAMES}
    for folder in folders.values():
        writable(folder, folder=True)
    known = all_methods()
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise PlanError(f"no method is called {unknown[0]!r}; methods are {', '.join(known)}.")
    chosen = {name: method for name, method in known.items() if name in (only or known)}
    outcomes = [
        run_table(
            load_model(model, dtype=dtype, device=device),
            chosen,
            folder,
            tasks=data or [f"reference:{task}" for task in reference.TASKS],
            budgets=budget or [0.6],
            questions=questions,
            samples=samples,
            machine=machine,
        )
        for model, folder in folders.items()
    ]
    figures.save_figure(results.retention_figure(outcomes), figure)
    before = out_path.read_text(encoding="utf-8") if out_path.is_file() else ""
    files.write_text(out_path, results.document(before, outcomes, known, f"images/{figure.name}"))
    out.print(f"written: {out_path} and {figure}; outcomes, question by question, are in {work}", soft_wrap=True)


TEXT = 66
#: Options of `lookless bench` that are for one engine alone.
ENGINES = {
    "transformers": ("batch", "device", "data"),
    "vllm": ("concurrency", "requests", "answer", "image_side", "vllm"),
}


@app.command()
@one_sentence
def bench(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="`reference`, a folder, or a hub id.")] = None,
    engine: Annotated[
        str, typer.Option(help="`transformers`, in this process, or `vllm`: two servers and a client of many requests.")
    ] = "transformers",
    geometry: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model: real layer shapes with random weights, of LLaVA-1.5-7B, ..., a folder with a "
            "config.json, or a hub id."
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="Of the geometry, for machines with less memory; the last of them counts as last.", min=2),
    ] = None,
    plan_dirs: Annotated[list[str] | None, typer.Option("--plan", help="A plan to time; may be repeated.")] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="A method at its paper's relative depth; may be repeated.")
    ] = None,
    visual: Annotated[
        list[int] | None,
        typer.Option(
            help="Visual tokens of a prompt, with --geometry: 576; repeated, a sweep.", min=1, max=MOST_TOKENS
        ),
    ] = None,
    text: Annotated[
        int | None,
        typer.Option(help="Text tokens of a prompt, half of them before the image: 66.", min=2, max=MOST_TOKENS),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A MODEL's prompts: a JSONL file, as for eval, of which three lengths are timed."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Prompts at once: 1; repeated, a sweep.", min=1, max=MOST_PROMPTS)
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--repeats", "--rounds", help="In each, everything is timed once: 9, with vLLM 3.", min=2),
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="With vLLM: requests at a time: 1, 4 and 16; may be repeated.", min=1)
    ] = None,
    requests: Annotated[int, typer.Option(help="With vLLM: requests of a round, at each concurrency.", min=1)] = 32,
    answer: Annotated[int, typer.Option(help="With vLLM: tokens of an answer.", min=2)] = 16,
    image_side: Annotated[
        int | None, typer.Option(help="With vLLM: pixels along a random image, if not what suits the model.", min=1)
    ] = None,
    vllm: Annotated[
        str, typer.Option(metavar="OPTIONS", help="With vLLM: its own, for both servers: '--max-model-len 2048'.")
    ] = "",
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for bench.json, bench.md and bench.png; with vLLM traffic.json and .md."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Time the stock model and plans in turn in one process, against each other and against the least they can cost.

    Example: lookless bench --geometry LLaVA-1.5-7B --layers 4 --method v-skip --method shortv

    On prompts of yours: lookless bench reference --data mine.jsonl --method v-skip

    Under traffic: lookless bench reference --engine vllm --plan my-plan --concurrency 1 --concurrency 16
    """
    from ..bench import prefill as benchmark
    from ..bench import prefill_report as timings
    from ..bench import prefill_results, subjects
    from ..configs import shape_named
    from ..methods import find
    from ..plan import Plan

    if out_dir is not None:
        writable(out_dir, folder=True)
    if (model is None) == (geometry is None):
        raise LooklessError("name either a MODEL or a --geometry to time.")
    if model is not None and visual:
        raise LooklessError("--visual is for a --geometry: a model's own images say how many visual tokens there are.")
    if model is not None and layers is not None:
        raise LooklessError("--layers is for a --geometry: a model is timed whole.")
    if model is not None and text is not None and engine == "transformers":
        raise LooklessError("--text is for a --geometry: a model's own questions say how much text there is.")
    if geometry is not None and data is not None:
        raise LooklessError("--data is for a MODEL: a geometry has no processor, so its prompts are random.")
    _check_engine(ctx, engine)
    if engine == "vllm":
        from ..bench.traffic_client import Traffic

        levels = tuple(sorted({*(concurrency or Traffic.concurrency)}))
        _bench_vllm(
            Traffic(levels, requests, rounds or Traffic.rounds, text or TEXT, answer, image_side),
            model=model,
            geometry=geometry,
            layers=layers,
            visual=visual or [576],
            plans=plan_dirs or [],
            methods=methods or [],
            dtype=dtype,
            options=vllm,
            out_dir=out_dir,
            as_json=as_json,
        )
        return
    plans = {path: Plan.from_pretrained(path) for path in plan_dirs or ()}
    named = {name: find(name) for name in methods or ("v-skip", "shortv", "vtw", "fastv")}
    whole = None
    if geometry is not None:
        shape = shape_named(geometry)
        cut = shape.cut(layers).geometry
        for plan in plans.values():  # before the model is made
            plan.check(cut)
        plans |= {name: method.sample(cut) for name, method in named.items()}
        if cut != shape.geometry:
            known = {name: method.sample(shape.geometry) for name, method in named.items()}
            whole = benchmark.Whole(shape.geometry, known)
        lengths = sorted({*(visual or [576])})
        subject = subjects.of_geometry(
            geometry, layers=layers, dtype=dtype, device=device, visual=lengths, text=text or TEXT
        )
        plans = {name: plan.model_copy(update={"geometry": subject.geometry}) for name, plan in plans.items()}
    else:
        assert model is not None
        subject = subjects.of_model(model, dtype=dtype, device=device, data=data)
        plans |= {name: method.sample(subject.geometry) for name, method in named.items()}
    timed = []
    for prompts in sorted({*(batch or [1])}):
        for inputs in subject.prompts(prompts):
            told = {"name": subject.name, "data": subject.data, "whole": whole}
            timed.append(benchmark.bench_prefill(subject.model, inputs, plans, **told, repeats=rounds or 9))
            if not as_json:
                for table in timings.bench_tables(timed[-1]):
                    print_whole(table)
    sweep = prefill_results.PrefillSeries.of(sorted(timed, key=lambda report: (report.visual, report.batch)))
    if out_dir is not None:
        timings.save(sweep, out_dir)
    if as_json:
        print_json(sweep)
        return
    if sweep.break_even:
        print_whole(timings.break_even_table(sweep))
    if out_dir is not None:
        out.print(f"saved to {out_dir}: bench.json, bench.md, bench.png", soft_wrap=True)


def _check_engine(ctx: typer.Context, engine: str) -> None:
    """Raises: LooklessError: there is no such engine, or an option is given that is for another."""
    if engine not in ENGINES:
        raise LooklessError(f"engine {engine!r} is not one of {', '.join(ENGINES)}.")
    for other, names in ENGINES.items():
        for name in names:
            source = ctx.get_parameter_source(name)
            if other != engine and source is not None and source.name == "COMMANDLINE":
                raise LooklessError(f"--{name.replace('_', '-')} is for --engine {other}, and this is {engine}.")


def _bench_vllm(
    traffic: Traffic,
    *,
    model: str | None,
    geometry: str | None,
    layers: int | None,
    visual: list[int],
    plans: list[str],
    methods: list[str],
    dtype: str,
    options: str,
    out_dir: Path | None,
    as_json: bool,
) -> None:
    """`lookless bench --engine vllm`."""
    import shlex
    import tempfile

    from ..bench import traffic as measuring
    from ..bench import traffic_client
    from ..bench import traffic_report as throughput
    from ..methods import find
    from ..serving.launch import check_installed

    named = len(plans) + len(methods)
    if named != 1:
        raise LooklessError(f"{named} plans are named, and one is served beside stock: give one --plan or --method.")
    if len(visual) > 1:
        raise LooklessError(f"{len(visual)} lengths are named: --engine vllm serves one, so give --visual once.")
    try:
        words = shlex.split(options)
    except ValueError as problem:
        raise LooklessError(f"--vllm {options!r} cannot be split into words: {problem}.") from problem
    check_installed()
    with tempfile.TemporaryDirectory(prefix="lookless-") as work:
        folder = Path(work)
        if geometry is not None:
            served = traffic_client.of_geometry(geometry, folder / "model", layers=layers, visual=visual[0])
        else:
            served = traffic_client.of_model(str(model), folder / "model")
        for name in methods:
            find(name).sample(served.geometry).save_pretrained(folder / "plan")
        logs = Path(tempfile.mkdtemp(prefix="lookless-bench-")) if out_dir is None else out_dir
        with err.status("starting") as status:
            report = measuring.bench_traffic(
                served,
                *((plans[0], plans[0]) if plans else (str(folder / "plan"), methods[0])),
                traffic,
                dtype=dtype,
                options=words,
                folder=logs,
                log=status.update if err.is_terminal else err.print,
            )
    if out_dir is not None:
        throughput.save(report, out_dir)
    if as_json:
        print_json(report)
        return
    print_whole(throughput.traffic_table(report))
    if out_dir is not None:
        out.print(f"saved to {out_dir}: traffic.json, traffic.md, and the logs of both servers", soft_wrap=True)
