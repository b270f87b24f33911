"""`lookless bench`: time the stock model and plans, in this process or in two vLLM servers."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LooklessError
from .common import (
    MOST_PIXELS,
    MOST_PROMPTS,
    MOST_TOKENS,
    DataOptions,
    Device,
    Json,
    app,
    err,
    is_runnable,
    one_sentence,
    out,
    print_json,
    print_whole,
    spread,
)
from .outputs import Overwrite, new_files

if TYPE_CHECKING:
    from ..bench.prefill import Whole
    from ..bench.prefill_results import PrefillReport, PrefillSeries
    from ..bench.subjects import Subject
    from ..bench.traffic_client import Served, Traffic
    from ..bench.traffic_results import TrafficReport
    from ..data import Reading
    from ..geometry import Geometry
    from ..methods import Method
    from ..plan import Plan

VISUAL, TEXT, REPEATS = 576, 66, 9
METHODS = ("v-skip", "shortv", "vtw", "fastv")  #: timed where none is named
#: Options that are for one engine alone.
ENGINES = {
    "transformers": ("batch", "device", "data"),
    "vllm": ("concurrency", "requests", "answer", "vllm"),
}

Name = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="`reference`, a folder, or a hub id.")]
Engine = Annotated[
    str, typer.Option(help="`transformers`, in this process, or `vllm`: two servers and a client of many requests.")
]
GeometryName = Annotated[
    str | None,
    typer.Option(
        help="Instead of a model: real layer shapes with random weights, of a preset such as LLaVA-1.5-7B, a folder "
        "with a config.json, or a hub id."
    ),
]
Layers = Annotated[
    int | None,
    typer.Option(help="With --geometry: build only the first N decoder layers, to fit in less memory.", min=2),
]
Plans = Annotated[list[str] | None, typer.Option("--plan", help="A plan to time; repeatable.")]
MethodNames = Annotated[
    list[str] | None,
    typer.Option("--method", help="A method to time, at its paper's setting for this depth; repeatable."),
]
Visual = Annotated[
    list[int] | None,
    typer.Option(
        help="With --geometry: visual tokens of a prompt (default 576); repeat it for a sweep.", min=1, max=MOST_TOKENS
    ),
]
Text = Annotated[
    int | None,
    typer.Option(help="Text tokens of a prompt, half of them before the image (default 66).", min=2, max=MOST_TOKENS),
]
Prompts = Annotated[
    str | None,
    typer.Option(help="With MODEL: its prompts, a JSONL file as for eval; three lengths of them are timed."),
]
Batch = Annotated[
    list[int] | None, typer.Option(help="Batch size (default 1); repeat it for a sweep.", min=1, max=MOST_PROMPTS)
]
Repeats = Annotated[
    int | None,
    typer.Option(
        "--repeats",
        "--rounds",
        help="Number of rounds; each round times every plan once (default 9; 3 with vLLM).",
        min=2,
    ),
]
Concurrency = Annotated[
    list[int] | None, typer.Option(help="With vLLM: concurrent requests (default 1, 4 and 16); repeatable.", min=1)
]
Requests = Annotated[int, typer.Option(help="With vLLM: requests in a round, at each concurrency.", min=1)]
Answer = Annotated[int, typer.Option(help="With vLLM: output tokens of a request.", min=2)]
ImageSize = Annotated[
    list[int] | None,
    typer.Option(
        help="With MODEL: the longer side that its prompts' images are scaled to, in pixels; repeat it for a sweep. "
        "With vLLM: width and height of the random images (default: by model).",
        min=1,
        max=MOST_PIXELS,
    ),
]
Vllm = Annotated[
    str,
    typer.Option(metavar="OPTIONS", help="Extra vLLM options, passed to both servers, e.g. '--max-model-len 2048'."),
]
OutDir = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for bench.json, bench.md and bench.png; with vLLM traffic.json and .md."),
]
FloatType = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


@dataclass(frozen=True)
class _Choice:
    """What is timed: a model or a geometry, the folders of plans, and the names of methods."""

    model: str | None
    geometry: str | None
    layers: int | None
    plans: Sequence[str]
    methods: Sequence[str]
    dtype: str


@dataclass(frozen=True)
class _Sizes:
    """Of prompts: visual tokens, text tokens, batch sizes, and pixels of images."""

    visual: list[int]
    text: int
    batch: list[int]
    images: list[int]


@dataclass(frozen=True)
class _Prompts:
    """Of a model: the user's data, if there are any, and how they are read."""

    data: str | None
    reading: Reading


@app.command()
@one_sentence
@spread
def bench(
    ctx: typer.Context,
    options: DataOptions,
    model: Name = None,
    engine: Engine = "transformers",
    geometry: GeometryName = None,
    layers: Layers = None,
    plan_dirs: Plans = None,
    methods: MethodNames = None,
    visual: Visual = None,
    text: Text = None,
    data: Prompts = None,
    batch: Batch = None,
    rounds: Repeats = None,
    concurrency: Concurrency = None,
    requests: Requests = 32,
    answer: Answer = 16,
    image_size: ImageSize = None,
    vllm: Vllm = "",
    out_dir: OutDir = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: FloatType = "bfloat16",
    as_json: Json = False,
) -> None:
    """Time the stock model and plans, alternating, against each other and against a lower bound.

    Example: lookless bench --geometry LLaVA-1.5-7B --layers 4 --method v-skip --method shortv

    On prompts of yours: lookless bench reference --data mine.jsonl --method v-skip

    Under traffic: lookless bench reference --engine vllm --plan my-plan --concurrency 1 --concurrency 16
    """
    if out_dir is not None:
        new_files(out_dir, ["traffic.json" if engine == "vllm" else "bench.json"], overwrite)
    choice = _Choice(model, geometry, layers, plan_dirs or (), methods or (), dtype)
    prompts = _Prompts(data, options.reading)
    _check_options(choice, visual=visual, text=None if engine == "vllm" else text, prompts=prompts)
    _check_image_size(choice, engine, image_size or ())
    _check_engine(ctx, engine)
    if engine == "vllm":
        traffic = _traffic(concurrency, requests, rounds, text or TEXT, answer, *(image_size or ()))
        _print_traffic(_time_traffic(choice, traffic, visual or [VISUAL], vllm, out_dir), out_dir, as_json)
    else:
        images = sorted({*(image_size or ())})
        sizes = _Sizes(sorted({*(visual or [VISUAL])}), text or TEXT, sorted({*(batch or [1])}), images)
        sweep = _time_prefill(choice, sizes, prompts=prompts, device=device, rounds=rounds or REPEATS, quiet=as_json)
        _print_sweep(sweep, out_dir, as_json)


def _check_options(choice: _Choice, *, visual: list[int] | None, text: int | None, prompts: _Prompts) -> None:
    """Raises: LooklessError: neither or both of model and geometry, or an option that is for the other."""
    model, geometry = choice.model, choice.geometry
    if (model is None) == (geometry is None):
        raise LooklessError("name either a MODEL or a --geometry to time.")
    if model is not None and visual:
        raise LooklessError("--visual is for a --geometry: a model's own images say how many visual tokens there are.")
    if model is not None and choice.layers is not None:
        raise LooklessError("--layers is for a --geometry: a model is timed whole.")
    if model is not None and text is not None:
        raise LooklessError("--text is for a --geometry: a model's own questions say how much text there is.")
    if prompts.data is None and str(prompts.reading):
        raise LooklessError(f"{prompts.reading} says how data are read, and there are none: give --data.")
    if geometry is not None and prompts.data is not None:
        raise LooklessError("--data is for a MODEL: a geometry has no processor, so its prompts are random.")


def _check_image_size(choice: _Choice, engine: str, sizes: Sequence[int]) -> None:
    """Raises: LooklessError: sizes are given for a geometry that has no images, or several where one is served."""
    if engine == "transformers" and sizes and choice.geometry is not None:
        raise LooklessError("--image-size is for a MODEL: of a --geometry give the number of --visual tokens.")
    if engine == "vllm" and len(sizes) > 1:
        raise LooklessError(f"{len(sizes)} image sizes are named: --engine vllm sends one, so give --image-size once.")


def _check_engine(ctx: typer.Context, engine: str) -> None:
    """Raises: LooklessError: there is no such engine, or an option is given that is for another."""
    if engine not in ENGINES:
        raise LooklessError(f"engine {engine!r} is not one of {', '.join(ENGINES)}.")
    for other, names in ENGINES.items():
        for name in names:
            source = ctx.get_parameter_source(name)
            if other != engine and source is not None and source.name == "COMMANDLINE":
                raise LooklessError(f"--{name.replace('_', '-')} is for --engine {other}, and this is {engine}.")


def _time_prefill(
    choice: _Choice, sizes: _Sizes, *, prompts: _Prompts, device: str, rounds: int, quiet: bool
) -> PrefillSeries:
    """In this process; each report is printed as it is made, unless ``quiet``."""
    from ..bench import prefill, prefill_report, prefill_results
    from ..methods import find

    methods = {name: find(name) for name in choice.methods or METHODS}
    subject, plans, whole = _subject(choice, methods, sizes, prompts, device)
    reports: list[PrefillReport] = []
    for size in sizes.batch:
        for inputs in subject.prompts(size):
            about = {"name": subject.name, "data": subject.data, "whole": whole}
            reports.append(prefill.bench_prefill(subject.model, inputs, plans, **about, repeats=rounds))
            for table in () if quiet else prefill_report.bench_tables(reports[-1]):
                print_whole(table)
    return prefill_results.PrefillSeries.of(sorted(reports, key=lambda report: (report.visual, report.batch)))


def _subject(
    choice: _Choice, methods: Mapping[str, Method], sizes: _Sizes, prompts: _Prompts, device: str
) -> tuple[Subject, dict[str, Plan], Whole | None]:
    """What runs, the plans for it by name, and the whole model where only its first layers run."""
    from ..bench import subjects
    from ..plan import Plan

    plans = {path: Plan.from_pretrained(path) for path in choice.plans}
    if choice.geometry is not None:
        return _dummy(choice, choice.geometry, plans, methods, sizes, device)
    subject = subjects.subject_of_model(
        str(choice.model),
        dtype=choice.dtype,
        device=device,
        data=prompts.data,
        reading=prompts.reading,
        sizes=sizes.images,
    )
    return subject, plans | _made(choice, methods, subject.geometry), None


def _dummy(
    choice: _Choice, name: str, plans: dict[str, Plan], methods: Mapping[str, Method], sizes: _Sizes, device: str
) -> tuple[Subject, dict[str, Plan], Whole | None]:
    """As :func:`_subject`, of a geometry."""
    from ..bench import prefill, subjects
    from ..configs import shape_named

    shape = shape_named(name)
    cut = shape.cut(choice.layers).geometry
    for plan in plans.values():  # before the model is made
        plan.check(cut)
    plans |= _made(choice, methods, cut)
    whole = prefill.Whole(shape.geometry, _made(choice, methods, shape.geometry)) if cut != shape.geometry else None
    subject = subjects.subject_of_geometry(
        name, layers=choice.layers, dtype=choice.dtype, device=device, visual=sizes.visual, text=sizes.text
    )
    return subject, {n: plan.model_copy(update={"geometry": subject.geometry}) for n, plan in plans.items()}, whole


def _made(choice: _Choice, methods: Mapping[str, Method], geometry: Geometry) -> dict[str, Plan]:
    """The methods' plans, after one that does nothing but skip what nobody reads; of the methods that are timed where
    none is named, those that the decoder can run."""
    from ..bench.timed_plans import LIVENESS, timed_plans

    plans = timed_plans(geometry, methods)
    if choice.methods:
        return plans
    return {name: plan for name, plan in plans.items() if name == LIVENESS or is_runnable(name, plan, geometry)}


def _print_sweep(sweep: PrefillSeries, out_dir: Path | None, as_json: bool) -> None:
    """Save it, and print what its reports do not hold."""
    from ..bench import prefill_report

    if out_dir is not None:
        prefill_report.save(sweep, out_dir)
    if as_json:
        print_json(sweep)
        return
    if sweep.break_even:
        print_whole(prefill_report.break_even_table(sweep))
    if out_dir is not None:
        out.print(f"saved to {out_dir}: bench.json, bench.md, bench.png", soft_wrap=True)


def _traffic(
    concurrency: list[int] | None, requests: int, rounds: int | None, text: int, answer: int, side: int | None = None
) -> Traffic:
    from ..bench.traffic_client import Traffic

    levels = tuple(sorted({*(concurrency or Traffic.concurrency)}))
    return Traffic(levels, requests, rounds or Traffic.rounds, text, answer, side)


def _time_traffic(
    choice: _Choice, traffic: Traffic, visual: list[int], options: str, out_dir: Path | None
) -> TrafficReport:
    """Under two vLLM servers; their logs are kept in ``out_dir``, or in a temporary folder."""
    from ..bench.traffic import bench_traffic
    from ..serving.launch import check_installed

    words = _check_traffic(choice, visual, options)
    check_installed()
    logs = Path(tempfile.mkdtemp(prefix="lookless-bench-")) if out_dir is None else out_dir
    with _served(choice, visual[0]) as (served, plan, name), err.status("starting") as status:
        log = status.update if err.is_terminal else err.print
        return bench_traffic(served, plan, name, traffic, dtype=choice.dtype, options=words, folder=logs, log=log)


def _check_traffic(choice: _Choice, visual: list[int], options: str) -> list[str]:
    """``options`` in words. Raises: LooklessError: they are not, or there is not one plan and one length."""
    named = len(choice.plans) + len(choice.methods)
    if named != 1:
        raise LooklessError(f"{named} plans are named, and one is served beside stock: give one --plan or --method.")
    if len(visual) > 1:
        raise LooklessError(f"{len(visual)} lengths are named: --engine vllm serves one, so give --visual once.")
    try:
        return shlex.split(options)
    except ValueError as problem:
        raise LooklessError(f"--vllm {options!r} cannot be split into words: {problem}.") from problem


@contextmanager
def _served(choice: _Choice, visual: int) -> Iterator[tuple[Served, str, str]]:
    """The model, the plan's folder and the plan's name; what is made for it is gone at the end."""
    from ..bench import traffic_client
    from ..methods import find

    with tempfile.TemporaryDirectory(prefix="lookless-") as work:
        folder = Path(work)
        if choice.geometry is not None:
            served = traffic_client.served_geometry(
                choice.geometry, folder / "model", layers=choice.layers, visual=visual
            )
        else:
            served = traffic_client.served_model(str(choice.model), folder / "model")
        plan, name = (*choice.plans, str(folder / "plan"))[0], (*choice.plans, *choice.methods)[0]
        for method in choice.methods:
            find(method).sample(served.geometry).save_pretrained(plan)
        yield served, plan, name


def _print_traffic(report: TrafficReport, out_dir: Path | None, as_json: bool) -> None:
    from ..bench import traffic_report

    if out_dir is not None:
        traffic_report.save(report, out_dir)
    if as_json:
        print_json(report)
        return
    print_whole(traffic_report.traffic_table(report))
    if out_dir is not None:
        out.print(f"saved to {out_dir}: traffic.json, traffic.md, and the logs of both servers", soft_wrap=True)
