"""docs/reproduction.md: the papers' claims one by one, from what `lookless experiment` wrote on the shipped models.

``python benchmarks/reproduction.py FOLDER``: the folder of ``--out``. Runs nothing; a second.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

from lookless import files
from lookless.experiments.definition import Experiment
from lookless.experiments.registry import experiments
from lookless.experiments.report import FAILS, HOLDS, OPEN, Finding, Report
from lookless.markdown import markdown_table, spliced, wrapped
from lookless.reference import NAMES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduction.md"
BEGIN = "<!-- what follows is written by benchmarks/reproduction.py -->"
END = "<!-- end of what benchmarks/reproduction.py writes -->"
PAPERS = {
    "2606.08511": "Look Less, Reason More (V-Skip)",
    "2606.31903": "Attend, Transform, or Silence (operator skipping)",
    "2501.19036": "RedundancyLens",
    "2510.17205": "VisiPruner",
}
#: experiments whose picture of the first model is shown
SHOWN = ("v-skip-layers", "v-skip-masks", "operator-updates", "redundancy-curves", "visipruner-ranges")
Reports = Mapping[str, Report]  # by model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = {name: _read(folder, name) for name in experiments()}
    body = "\n\n".join([_counts(found), *(_paper(paper, title, found, folder) for paper, title in PAPERS.items())])
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    files.write_text(PAGE, spliced(before, BEGIN, END, body))


def _read(folder: Path, name: str) -> Reports:
    """What there is of an experiment, by model."""
    paths = {model: folder / model / f"{name}.json" for model in NAMES}
    return {m: Report.model_validate_json(path.read_text("utf-8")) for m, path in paths.items() if path.exists()}


def _counts(found: Mapping[str, Reports]) -> str:
    heads = ("model", HOLDS, FAILS, OPEN)
    rows = []
    for model in NAMES:
        verdicts = [f.verdict for reports in found.values() if model in reports for f in reports[model].findings]
        rows.append((model, *(str(verdicts.count(verdict)) for verdict in heads[1:])))
    settings = {model: next((r[model].settings for r in found.values() if model in r), {}) for model in NAMES}
    told = "; ".join(f"`{model}`: {', '.join(f'{k} {v}' for k, v in s.items())}" for model, s in settings.items())
    return f"## How many hold\n\n{markdown_table(heads, rows)}\n\n{wrapped(f'Settings: {told}.')}"


def _paper(paper: str, title: str, found: Mapping[str, Reports], folder: Path) -> str:
    known = experiments()
    parts = [_experiment(known[name], reports, folder) for name, reports in found.items() if known[name].paper == paper]
    return "\n\n".join([f"## {title}, arXiv {paper}", *parts])


def _experiment(experiment: Experiment, reports: Reports, folder: Path) -> str:
    heading = [f"### {experiment.name}: {experiment.title}", f"{experiment.repeats}."]
    if not reports:
        return "\n\n".join(
            [*heading, shell(f"lookless experiment {experiment.name} MODEL --data DATA"), "Not measured yet."]
        )
    commands = shell(*(_command(experiment, report) for report in reports.values()))
    claims = {finding.claim: finding.where for report in reports.values() for finding in report.findings}
    rows = [(claim, where, *(_cell(reports.get(model), claim) for model in NAMES)) for claim, where in claims.items()]
    table = markdown_table(("claim", "in the paper", *NAMES), rows)
    picture = _picture(experiment, reports, folder)
    return "\n\n".join([*heading, commands, table, *picture])


def shell(*commands: str) -> str:
    """A block of them."""
    return "\n".join(["```sh", *commands, "```"])


def _command(experiment: Experiment, report: Report) -> str:
    s = report.settings
    tasks = " ".join(f"--data reference:{task}" for task in str(s["tasks"]).split())
    sizes = f"--questions {s['questions']} --samples {s['samples']} --seeds {s['seeds']}"
    return f"lookless experiment {experiment.name} {report.model} {tasks} {sizes}"


def _cell(report: Report | None, claim: str) -> str:
    finding: Finding | None = next((f for f in report.findings if f.claim == claim), None) if report else None
    return f"**{finding.verdict}**: {finding.measured}" if finding else "not run"


def _picture(experiment: Experiment, reports: Reports, folder: Path) -> list[str]:
    model = next(iter(NAMES))
    drawn = folder / model / f"{experiment.name}.png"
    if experiment.name not in SHOWN or model not in reports or not drawn.exists():
        return []
    shutil.copyfile(drawn, ROOT / "docs" / "images" / f"{experiment.name}.png")
    return [f"![{experiment.title}](images/{experiment.name}.png)"]


if __name__ == "__main__":
    main()
