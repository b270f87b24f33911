"""Every block of code in README.md and docs/ is run, in one folder a page, as a reader would from top to bottom.

What cannot be run here is in :data:`NOT_RUN`, and checked as far as that goes: commands are read by their own parsers.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import typer
import yaml

from benchmarks import redraw
from helpers import user
from helpers.documents import PAGES, ROOT, Block, blocks, cells, text
from lookless import Geometry, Plan, Skip, flops, load_data
from lookless.cli.main import app
from lookless.experiments.registry import experiments
from lookless.lmms.names import CLASSES, PREFIX
from website import picture

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

#: Commands that begin so, and why they are only parsed; of several beginnings the longest counts.
NOT_RUN = {
    ".venv/bin/python": "scripts that train for hours; that they take these arguments is checked",
    "accelerate launch": "it starts four processes with a GPU each; tests/test_scale.py starts two without",
    "lmms-eval": "lmms-eval is not installed here; tests/lmms runs it",
    "lookless bench MODEL --data mine.jsonl --image-size": "the shipped models bring images of these sizes to one",
    "lookless bench reference --engine vllm": "vLLM is not installed here; tests/engine/test_serve.py runs it",
    "lookless experiment all": "hours; tests/test_experiments.py runs each experiment",
    "lookless experiment hybrid-mixers": "minutes; tests/test_hybrid_mixers.py runs it",
    "lookless experiment operator-": "hours for the four papers; tests/test_experiments.py runs each experiment",
    "lookless experiment redundancy-": "as for operator-",
    "lookless experiment v-skip-": "as for operator-",
    "lookless experiment visipruner-": "as for operator-",
    "lookless report RUN_DIR --samples": "it needs the model of a whole run; tests/test_pages_of_models.py makes one",
    "lookless table reference --dtype": "an hour; tests/test_table.py writes such a page",
    "make": "it builds an environment; that the target is there is checked",
    "mkdir": "it reads another commit",
    "pip install": "it changes the environment; that the extra is there is checked",
    "python": "scripts that take minutes to hours; that they take these arguments is checked",
    "python -m lmms_eval": "lmms-eval is not installed here; tests/lmms runs it",
    "python benchmarks/redraw.py": "it draws the figures of docs/ anew, and takes no arguments",
    "python run.py": "VLMEvalKit is not installed here; tests/engine/test_serve.py sends its request",
    "python tests/fuzz/readers.py": "atheris is not installed here",
    "torchrun": "it needs four GPUs; tests/test_scale.py starts it with two processes",
    "vllm serve": "vLLM is not installed here; tests/engine runs it",
}
LANGUAGES = ("sh", "python", "json", "toml", "yaml", "text")
COMMANDS = [
    (page, " ".join(words)) for page in PAGES for b in blocks(page) if b.language == "sh" for words in b.commands
]


def reason(command: str) -> str | None:
    """The beginning in :data:`NOT_RUN` that the command has."""
    return max((begin for begin in NOT_RUN if f"{command} ".startswith(begin)), key=len, default=None)


def test_every_block_says_its_language():
    for page in PAGES:
        for block in blocks(page):
            assert block.language in LANGUAGES, (page, block)


def test_no_exception_is_left_over():
    used = {reason(command) for _, command in COMMANDS}
    assert used == {*NOT_RUN, None}
    assert sum(reason(command) is None for _, command in COMMANDS) >= 40


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.long if page == "README.md" else pytest.mark.slow)
        for page in PAGES
        if blocks(page)
    ],
)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    user.folder(monkeypatch)
    user.without_results(words for block in blocks(page) if block.language == "sh" for words in block.commands)
    names: dict = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if block.language == "sh":
            for words in block.commands:
                command(words, where, monkeypatch)
        elif block.language == "python":
            exec(compile(block.code, where, "exec"), names)
        elif block.language in READERS:
            READERS[block.language](block)
    if "METHOD" in names:  # docs/methods.md
        assert names["METHOD"].build(user.SMALL).provenance.method == "squint"


@pytest.mark.long
def test_the_notebook_runs_from_nothing(tmp_path, monkeypatch):
    """Its first cell makes what a user has; no outputs are kept that could be of another day."""
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for cell in cells("docs/notebook.ipynb"):
        exec(compile(cell.code, f"cell {cell.line}", "exec"), names)
    assert names["plan"] == Plan.from_pretrained("my-plan")
    assert sum(names["skipped"]) == 6
    assert Path("layers.png").is_file()
    assert not any(cell.get("outputs") for cell in json.loads(text("docs/notebook.ipynb"))["cells"])


def command(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs it, or has it parsed."""
    line = " ".join(words)
    if begin := reason(line):
        return PARSED.get(begin, nothing)(words, monkeypatch)
    assert words[0] == "lookless", (where, line)
    done = user.run(words)
    assert done.exit_code == 0, (where, line, done.output, done.exception)
    assert done.stdout.strip() or words[1] == "serve", (where, line)


def lookless(words: list[str], *_) -> None:
    """Options exist and have values that they can have; an experiment has its name."""
    group = typer.main.get_command(app)
    context = group.make_context("lookless", words[words.index("lookless") + 1 :], resilient_parsing=False)
    name, found, left = group.resolve_command(context, [*context._protected_args, *context.args])
    found.make_context(name, [*left], parent=context)  # which empties what it is given
    if name == "experiment":
        assert left[0] in {*experiments(), "all"}


class ParsedError(Exception):
    """A script has understood its arguments."""


def script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own parser takes these arguments; there it is stopped."""
    known = argparse.ArgumentParser.parse_known_args

    def parse(parser, arguments=None, namespace=None):
        _, left = known(parser, arguments, namespace)
        assert not left, words
        raise ParsedError

    start, name = (runpy.run_module, words[2]) if words[1] == "-m" else (runpy.run_path, str(ROOT / words[1]))
    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse)
        patched.setattr(argparse.ArgumentParser, "parse_known_args", parse)  # of scripts that hand on what is left
        patched.setattr(sys, "argv", words[2:] if words[1] == "-m" else words[1:])
        if words[1] != "-m":
            patched.syspath_prepend(str((ROOT / words[1]).parent))
        with pytest.raises(ParsedError):
            start(name, run_name="__main__")


def extra(words: list[str], *_) -> None:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    for name in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert name in extras


def target(words: list[str], *_) -> None:
    assert re.search(rf"^{words[1]}:", text("Makefile"), re.MULTILINE)


def served(words: list[str], *_) -> None:
    """The plan is where the plug-in looks for it."""
    assert json.loads(words[words.index("--additional-config") + 1])["lookless"]["plan"] == "PLAN_DIR"


def lmms_eval(words: list[str], *_) -> None:
    """A model of ours."""
    assert words[words.index("--model") + 1].removeprefix(PREFIX) in CLASSES


def nothing(*_) -> None:
    """Not even a parser is here."""


#: What reads the commands of :data:`NOT_RUN`.
PARSED = {
    **{begin: lookless for begin in NOT_RUN if begin.startswith(("lookless", "accelerate", "torchrun"))},
    ".venv/bin/python": script,
    "lmms-eval": lmms_eval,
    "make": target,
    "pip install": extra,
    "python": script,
    "vllm serve": served,
}


def sample(block: Block) -> None:
    """A line of data, or a file that says how to read some."""
    found = json.loads(block.code)
    file = Path("shown.json" if "data" in found else "shown.jsonl")
    file.write_text(json.dumps(found))
    [first, *_] = load_data(str(file))
    assert first.question
    assert first.images


def entry_point(block: Block) -> None:
    [(group, names)] = tomllib.loads(block.code)["project"]["entry-points"].items()
    assert group == "lookless.methods"
    assert names == {"squint": "mine:METHOD"}


READERS = {"json": sample, "toml": entry_point, "yaml": lambda block: yaml.safe_load(block.code)["include"]}


def test_the_plan_of_concepts_is_that_of_its_picture():
    [shown] = [block.code for block in blocks("docs/concepts.md") if block.language == "text"]
    assert shown.split() == str(picture.PLAN).split()


def results(setting: str) -> dict[str, dict[str, str]]:
    """The rows of a table of docs/results.md, by method."""
    [rows] = [rows for _, heading, rows in redraw.tables(ROOT / "docs/results.md") if heading == setting]
    return {row["method"]: row for row in rows}


def test_the_first_table_is_of_the_results():
    measured = results("At 60% of the FLOPs")
    names = {"random tokens": "random-tokens", "a smaller image": "down-sampling"}
    shown = re.findall(r"^\| (.+?) \| (\d+) % \| (\d+) % \|$", text("README.md"), re.MULTILINE)
    assert len(shown) == 6
    for said, kept, time in shown:
        row = measured[names.get(said) or re.match(r"`([\w-]+)`", said)[1]]
        assert float(row["retention, %"].split()[0]) == pytest.approx(int(kept), abs=0.5), said
        assert row["prefill time, batch 8, %"] == time, said


def test_the_figures_of_the_questions_are_of_the_results():
    """docs/faq.md says of V-Skip what docs/results.md measured."""
    row = results("At the paper's setting, for this model or at the same relative depth")["v-skip"]
    dense = re.search(r"text (\d+), chart (\d+)", text("docs/results.md"))
    assert [round(float(row["retention, %"].split()[0])), int(row["chart"])] == [91, int(dense[2])]
    assert int(row["text"]) / int(dense[1]) == pytest.approx(0.68, abs=0.01)
    said = " ".join(text("docs/faq.md").split())
    assert "keeps 91 % of the shipped model's right answers, all of those about charts" in said
    assert "of those that take reading text 68 %" in said


def test_shares_of_flops_are_what_the_formula_gives():
    """README.md, of LLaVA-1.5-7B with 576 visual and 66.6 text tokens."""
    shape = Geometry.preset("LLaVA-1.5-7B")
    made = {"V-Skip": Plan.full(shape).at(range(12, 31), attention=Skip())}
    made["ShortV"] = made["V-Skip"].at(range(12, 31), ffn=Skip())
    full = flops.prefill(shape, visual=576, text=66.6).total
    kept = {name: flops.prefill(shape, visual=576, text=66.6, plan=plan).total / full for name, plan in made.items()}
    assert f"V-Skip keeps {kept['V-Skip']:.0%}".replace("%", " %") in " ".join(text("README.md").split())
    assert f"and ShortV {kept['ShortV']:.0%}".replace("%", " %") in " ".join(text("README.md").split())


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text(page)):
            if not link.startswith(("http://", "https://", "mailto:")):
                assert ((ROOT / page).parent / link).exists(), (page, link)
