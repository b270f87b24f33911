"""Rules of the code: imports run one way, part of it needs no torch, files are short, lists agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import lookless
from helpers.layout import INSIDE, ORDER
from lookless.reference import SHIPPED

SOURCE = Path(lookless.__file__).parent
ROOT = Path(__file__).parents[1]
TORCH_FREE = ORDER[: ORDER.index("runtime")]
#: Packages whose names are imported when they are used.
LAZY = ["lookless", "lookless.data", "lookless.search", "lookless.bench", "lookless.certification", "lookless.routing"]


def imports(path: Path) -> set[str]:
    """Modules of the package that ``path`` imports when it is imported; what is for type checkers does not count."""
    package = path.relative_to(SOURCE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            found |= {base[0]} if base else {alias.name for alias in node.names}
    return found


def siblings(path: Path) -> set[str]:
    """Modules of its own package that ``path`` imports, at the top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


FILES = [p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    mine = name_of(path)
    assert mine in ORDER, f"{mine} has no place in the house"
    for other in imports(path) - {mine}:
        assert ORDER.index(other) < ORDER.index(mine), f"{mine} imports {other}, which stands above it"


@pytest.mark.parametrize("package", INSIDE)
def test_imports_run_one_way_inside(package):
    order, files = INSIDE[package], [p for p in (SOURCE / package).glob("*.py") if p.stem != "__init__"]
    assert {p.stem for p in files} == set(order)
    for path in files:
        for other in siblings(path):
            assert order.index(other) < order.index(path.stem), (
                f"{package}.{path.stem} imports {other}, which is above it"
            )


def test_torch_free_part():
    modules = [*(f"lookless.{name}" for name in TORCH_FREE), *LAZY]
    code = f"import sys\nfor m in {modules}: __import__(m)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_import_patches_nothing():
    code = (
        "import transformers.models.llama.modeling_llama as m, torch\n"
        "before = {k: v for k, v in vars(m.LlamaDecoderLayer).items()}, dict(vars(torch.nn.Module))\n"
        "import lookless.cli.main, lookless.runtime.patching, lookless.calibration.sweep\n"
        "assert before == ({k: v for k, v in vars(m.LlamaDecoderLayer).items()}, dict(vars(torch.nn.Module)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", LAZY)
def test_public_names_are_there_and_nothing_else_is_shown(package):
    module = import_module(package)
    assert dir(module) == sorted({*module.__all__})
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_the_public_names_are_few_and_hide_no_module():
    assert len(lookless.__all__) < 40
    assert callable(lookless.apply)
    import_module("lookless.evaluation")  # which imports its neighbours

    assert callable(lookless.apply), "a submodule hides the function of the same name"


@pytest.mark.parametrize("folder", ["src", "tests", "training", "benchmarks", "website", "release"])
def test_no_file_is_longer_than_400_lines(folder):
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in (ROOT / folder).rglob("*.py")}
    assert lines
    assert {path: count for path, count in lines.items() if count > 400} == {}


def bounds(text: str, relation: str) -> dict[str, str]:
    """Versions by package, of lines of requirements."""
    return dict(re.findall(rf'^[ "]*([\w-]+){relation}(\d[\d.]*)', text, re.MULTILINE))


def number(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".")]
    return (*parts, *[0] * (3 - len(parts)))


def test_the_oldest_and_the_newest_supported_versions_are_tested():
    project = (ROOT / "pyproject.toml").read_text()
    lowest, oldest = bounds(project, ">="), bounds((ROOT / "constraints-oldest.txt").read_text(), "==")
    newest = bounds((ROOT / "constraints.txt").read_text(), "==")
    assert lowest.keys() >= oldest.keys() - {"torch"}
    for package, version in oldest.items():
        if package != "torch":  # why: constraints-oldest.txt
            assert number(lowest[package]) == number(version), package
    [(package, too_new)] = re.findall(r"(transformers)>=[\d.]+,<([\d.]+)", project)
    assert number(newest[package])[:2] == (number(too_new)[0], number(too_new)[1] - 1)


def test_every_cell_and_every_rank_is_compared_with_the_slow_reference():
    from helpers.plans import DECODE, OF_TOWER, PLANS
    from lookless.ranks import RANKS

    rows = [row for plan in (*PLANS.values(), *DECODE.values()) for row in plan.layers]
    for column, field in lookless.LayerPlan.model_fields.items():
        planned = {type(getattr(row, column)) for row in rows}
        assert planned == set(get_args(field.annotation)), column
    assert {rank for row in rows for rank in row.ranks} | {*OF_TOWER} == RANKS.keys()


FOLDERS = (ROOT, ROOT / "docs", ROOT / "training", *SHIPPED.values())
PAGES = [path for folder in FOLDERS for path in folder.glob("*.md") if path.name != "card.md"]  # a template


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_wrapped(page):
    """At 100 columns; code, tables, and what a link points to do not count."""
    text = re.sub(r"^```.*?^```", lambda code: "\n" * code.group().count("\n"), page.read_text(), flags=re.M | re.S)
    lines = [re.sub(r"\]\([^)]*\)", "]", line) for line in text.split("\n")]
    free = re.compile(r" *\||    ")  # a table, or code
    long = [n for n, line in enumerate(lines, 1) if len(line) > 100 and not free.match(line)]
    assert long == []
