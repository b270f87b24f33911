"""Everything that is worth knowing of a GPU, in one command: ``python benchmarks/gpu.py``; writes docs/performance.md.

In transformers: whole decoders with random weights, stock and plans in turn, with the time that a plan lets one expect
of this GPU (:mod:`lookless.bench.roofline`) and the most memory held. In vLLM, where it is installed: stock and a plan
under traffic, with CUDA graphs and without. Results are stored in benchmarks/runs, and a rerun resumes from them.
``--device cpu --model reference:16:1 --rounds 2`` tries all of it on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from lookless import files, methods
from lookless.bench import traffic_report
from lookless.bench.prefill import bench_prefill
from lookless.bench.prefill_report import describe
from lookless.bench.prefill_results import SCHEMA_VERSION, STOCK, PrefillReport
from lookless.bench.roofline import Rates, least_s, measured_rates
from lookless.bench.subjects import subject_of_geometry
from lookless.bench.timed_plans import timed_plans
from lookless.bench.traffic import bench_traffic
from lookless.bench.traffic_client import Traffic, served_geometry, served_model
from lookless.bench.traffic_results import SCHEMA_VERSION as TRAFFIC_SCHEMA
from lookless.bench.traffic_results import TrafficReport
from lookless.errors import LooklessError
from lookless.loading import DTYPES
from lookless.markdown import markdown_table, spliced, wrapped
from lookless.reference import NAMES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- what follows is written by benchmarks/gpu.py -->", "<!-- end of what benchmarks/gpu.py writes -->"
PLANS = ("v-skip", "operator-skipping", "shortv", "vtw", "fastv", "redundancylens")
TEXT, ENOUGH = 66, 0.95
#: geometry, visual tokens and prompts of a call
PREFILLS = (
    "Qwen3-VL-2B:1200:1",
    "Qwen3-VL-2B:1200:8",
    "Qwen3-VL-8B:1200:1",
    "Qwen3-VL-8B:1200:8",
    "LLaVA-1.5-7B:576:1",
    "LLaVA-1.5-7B:576:8",
    "LLaVA-NeXT-7B:2110:1",
    "Gemma-4-E2B:1120:1",
    "Gemma-4-E4B:1120:1",
)
#: geometry and visual tokens, which are a square, as of one image; Gemma 4 is not served under a plan
SERVED = ("Qwen3-VL-2B:1225", "Qwen3-VL-8B:1225", "LLaVA-1.5-7B:576", "LLaVA-NeXT-7B:2116")
SERVED_PLAN = "shortv"
#: vLLM's options besides, by what is said of them
GRAPHS = {"with CUDA graphs": (), "without": ("--enforce-eager",)}
OPTIONS = "--max-model-len 4096"
HEADS = (
    "",
    "prefill ms",
    "time kept",
    "FLOPs kept",
    "promised",
    "realised / promised",
    f">= {ENOUGH}",
    "x lower bound",
    "TTFT ms",
    "TPOT ms",
    "peak MiB",
)
WHAT = (
    "Promised: the time kept on a machine that multiplies and reads weights as fast as this one, measured apart, and "
    "loses nothing else: a product of few rows takes as long as its weights take to be read. Realised / promised: the "
    "share of the time saved over the share promised. Prefill, TTFT, TPOT, peak and lower bound as above. Transformers "
    "runs a prefill without CUDA graphs."
)
NO_VLLM = "vLLM is not installed here, so nothing was timed under traffic."


@dataclass(frozen=True)
class Settings:
    """How everything is timed.

    Attributes:
        device, dtype: of the weights.
        layers: how many of each decoder's first layers run; None for all.
        rounds: that are recorded.
        folder: where results are stored.
        options: of vLLM.
    """

    device: str
    dtype: str
    layers: int | None
    rounds: int
    folder: Path
    options: tuple[str, ...]

    def path(self, *words: str) -> Path:
        depth = "whole" if self.layers is None else f"{self.layers}-layers"
        name = "-".join(("gpu", self.device.partition(":")[0], self.dtype, depth, *words))
        return self.folder / f"{name.replace(':', '-').replace(' ', '-')}.json"


def rates_of(settings: Settings) -> Rates:
    """What this machine does in a second."""
    path, adapter = settings.path("rates"), TypeAdapter(Rates)
    if not path.exists():
        found = measured_rates(DTYPES[settings.dtype], settings.device)  # type: ignore[arg-type]
        files.write_text(path, adapter.dump_json(found, indent=1).decode() + "\n")
    return adapter.validate_json(path.read_text())


def prefill_of(case: str, settings: Settings) -> PrefillReport:
    """Stock and plans in transformers, of ``case``: a geometry, visual tokens and prompts."""
    path = settings.path(case)
    if path.exists():
        return files.load(path, PrefillReport, LooklessError, SCHEMA_VERSION)
    name, visual, batch = case.split(":")
    subject = subject_of_geometry(
        name, layers=settings.layers, dtype=settings.dtype, device=settings.device, visual=[int(visual)], text=TEXT
    )
    [inputs] = subject.prompts(int(batch))
    found = bench_prefill(
        subject.model,
        inputs,
        timed_plans(subject.geometry, PLANS),
        name=subject.name,
        repeats=settings.rounds,
        warm_up=1,
    )
    files.write_text(path, files.dump(found))
    del subject, inputs
    gc.collect()  # or the next model does not fit beside this one
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def prefill_section(report: PrefillReport, rates: Rates) -> str:
    """A heading, a sentence and a table."""
    plans, itemsize = timed_plans(report.geometry, PLANS), DTYPES[report.dtype].itemsize  # type: ignore[union-attr]
    tokens = {"visual": report.visual, "text": report.text, "batch": report.batch, "itemsize": itemsize}
    stock_s = least_s(report.geometry, rates, **tokens)
    rows = []
    for timed in report.timed:
        promised = realised = None
        if timed.name != STOCK:
            promised = least_s(report.geometry, rates, **tokens, plan=plans[timed.name], kept=1) / stock_s
            realised = (1 - timed.time_kept) / (1 - promised)
        rows.append(
            (
                timed.name,
                f"{timed.prefill_ms.median:.1f}",
                f"{timed.time_kept:.1%}",
                f"{timed.flops_kept:.1%}",
                "-" if promised is None else f"{promised:.1%}",
                "-" if realised is None else f"{realised:.2f}",
                "-" if realised is None else "yes" if realised >= ENOUGH else "**no**",
                "-" if timed.times_lower_bound is None else f"{timed.times_lower_bound:.2f}",
                f"{timed.ttft_ms.median:.1f}",
                f"{timed.tpot_ms.median:.1f}",
                f"{timed.peak_mib:.0f}",
            )
        )
    title = f"#### {report.model}: {report.visual} visual and {report.text} text tokens, batch {report.batch}"
    return "\n\n".join([title, describe(report), markdown_table(HEADS, rows)])


def traffic_of(case: str, graphs: str, settings: Settings) -> TrafficReport:
    """Stock and a plan in vLLM."""
    path = settings.path("vllm", case, graphs)
    if path.exists():
        return files.load(path, TrafficReport, LooklessError, TRAFFIC_SCHEMA)
    name, visual = case.split(":")
    logs = settings.folder / path.stem
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        subject = (
            served_model(name, folder)
            if name in NAMES
            else served_geometry(name, folder, layers=settings.layers, visual=int(visual))
        )
        plan = methods.METHODS[SERVED_PLAN].sample(subject.geometry).save_pretrained(Path(work) / "plan")
        traffic = Traffic(rounds=max(2, settings.rounds // 3))
        how = {"dtype": settings.dtype, "options": (*settings.options, *GRAPHS[graphs]), "folder": logs, "log": print}
        found = bench_traffic(subject, str(plan), SERVED_PLAN, traffic, **how)
    files.write_text(path, files.dump(found))
    return found


def traffic_section(report: TrafficReport, graphs: str) -> str:
    """As :func:`lookless.bench.traffic_report.markdown_section`, and whether TTFT keeps the promise of the FLOPs."""
    first = min(report.levels, key=lambda level: level.concurrency)
    realised = (1 - first.ratios.ttft) / (1 - report.flops_kept)
    kept = "keeps" if realised >= ENOUGH else "**does not keep**"
    mark = (
        f"TTFT at concurrency {first.concurrency}, tower and queue included, {kept} what the decoder's FLOPs promise: "
        f"{realised:.2f} of the saving."
    )
    return "\n\n".join([traffic_report.markdown_section(report).replace("###", f"#### {graphs}:", 1), mark])


def sections(settings: Settings, prefills: Sequence[str], served: Sequence[str]) -> Iterator[str]:
    """Everything that is written."""
    rates = rates_of(settings)
    yield WHAT
    yield (
        f"Here {rates.flops / 1e12:.3g} TFLOP/s and {rates.bytes / 1e9:.4g} GB/s were measured, so a product costs "
        f"its FLOPs from {rates.flops * DTYPES[settings.dtype].itemsize / 2 / rates.bytes:.0f} rows on."  # type: ignore[union-attr]
    )
    for case in prefills:
        yield prefill_section(prefill_of(case, settings), rates)
    if importlib.util.find_spec("vllm") is None:
        yield NO_VLLM
        return
    yield traffic_report.NOTE
    for case in served:
        for graphs in GRAPHS:
            yield traffic_section(traffic_of(case, graphs, settings), graphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--layers", type=int, help="of each decoder, the first so many; all if not given")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", action="append", help=f"GEOMETRY:VISUAL:BATCH, instead of {', '.join(PREFILLS)}")
    parser.add_argument("--served", action="append", help=f"GEOMETRY:VISUAL, instead of {', '.join(SERVED)}")
    parser.add_argument("--vllm", default=OPTIONS, metavar="OPTIONS", help="of vLLM, for both servers")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    settings = Settings(given.device, given.dtype, given.layers, given.rounds, given.runs, tuple(given.vllm.split()))
    settings.folder.mkdir(parents=True, exist_ok=True)
    found = sections(settings, given.model or PREFILLS, given.served or (() if given.model else SERVED))
    body = "\n\n".join(found)
    before = given.page.read_text() if given.page.exists() else ""
    files.write_text(given.page, spliced(before, BEGIN, END, wrapped(body)))


if __name__ == "__main__":
    main()
