"""Serves stock and plans with vLLM, sends both the same traffic, and writes its part of docs/performance.md.

``python benchmarks/serving.py``, where vLLM is installed: half an hour on two cores. Results are stored in
benchmarks/runs, and a rerun resumes from them. Options of vLLM may follow, for both servers:
``python benchmarks/serving.py --max-model-len 2048``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from lookless import files, methods
from lookless.bench import traffic_report as report
from lookless.bench.traffic import bench_traffic
from lookless.bench.traffic_client import Served, Traffic, served_geometry, served_model
from lookless.bench.traffic_results import SCHEMA_VERSION, TrafficReport
from lookless.errors import LooklessError
from lookless.markdown import spliced, wrapped

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- from here on written by benchmarks/serving.py -->"
END = "<!-- up to here -->"
METHODS = ("shortv",)
LAYERS = 3
OPTIONS = ("--kv-cache-memory-bytes", "1G", "--max-model-len", "1024")
#: as many requests and rounds as two cores do in minutes
TRAFFIC = {"reference": Traffic(requests=192, rounds=4), "LLaVA-1.5-7B": Traffic(requests=16, rounds=2, answer=8)}


def served(name: str, folder: Path) -> Served:
    return (
        served_model(name, folder) if name == "reference" else served_geometry(name, folder, layers=LAYERS, visual=576)
    )


def measured(name: str, method: str, runs: Path, options: list[str]) -> TrafficReport:
    path = runs / f"vllm-{name}-{method}.json"
    if path.exists():
        return files.load(path, TrafficReport, LooklessError, SCHEMA_VERSION)
    logs = runs / path.stem
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        subject = served(name, Path(work) / "model")
        plan = methods.METHODS[method].sample(subject.geometry).save_pretrained(Path(work) / "plan")
        traffic = TRAFFIC[name]
        found = bench_traffic(
            subject, str(plan), method, traffic, dtype="bfloat16", options=options, folder=logs, log=print
        )
    files.write_text(path, files.dump(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs")
    arguments, options = parser.parse_known_args()
    reports = [measured(name, m, arguments.runs, options or [*OPTIONS]) for name in TRAFFIC for m in METHODS]
    body = "\n\n".join([report.NOTE, *map(report.markdown_section, reports)])
    files.write_text(PAGE, spliced(PAGE.read_text(), BEGIN, END, wrapped(body)))


if __name__ == "__main__":
    main()
