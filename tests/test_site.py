"""The site: its navigation, its links, the pages written from the code, and the shell's completion of commands."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from helpers.documents import ROOT, text
from lookless.cli.main import app
from lookless.methods import METHODS
from website import api, commands, methods, picture
from website.docstrings import markdown
from website.foreign import foreign
from website.sources import BESIDE, as_page

CONFIGURATION = text("mkdocs.yml")
DOCUMENTS = {path.name: path for path in ROOT.glob("docs/*.md")}
PAGES = {**{page: ROOT / path for page, path in BESIDE.items()}, **DOCUMENTS}
WRITTEN = {"commands.md", "notebook.md", *(f"methods/{name}.md" for name in METHODS)}


def navigation() -> list[str]:
    """The pages in it, in order."""

    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for one in (entry.values() if isinstance(entry, dict) else entry) for page in pages(one)]

    return pages(yaml.safe_load(CONFIGURATION[CONFIGURATION.index("\nnav:") :])["nav"])


def test_the_navigation_has_every_page_once():
    """Those of the methods are added to it while the site is built."""
    assert sorted(navigation()) == sorted({*PAGES, "commands.md", "notebook.md"})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_of_the_site(page):
    on_site = as_page(PAGES[page].read_text(), page)
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", on_site):
        target = (Path("/") / page).parent.joinpath(link)
        name = re.sub(r"[^/]+/\.\./", "", str(target)).lstrip("/")
        assert name in PAGES.keys() | WRITTEN or (ROOT / "docs" / name).is_file(), (page, link)


def test_a_document_becomes_a_page():
    code = "\n\n    [code](docs/data.md)\n\n"
    document = f"[a](docs/data.md#rows), [b](SECURITY.md), [c](https://a.b/c.md){code}- one\n  - two\n"
    page = f"[a](data.md#rows), [b](security.md), [c](https://a.b/c.md){code}- one\n    - two\n"
    assert as_page(document, "index.md") == page
    assert as_page("[up](../README.md#a-plan)", "methods.md") == "[up](index.md#a-plan)"
    assert as_page("[up](../docs/data.md)", "training.md") == "[up](data.md)"
    assert as_page("[up](docs/data.md)\n```\n[a](docs/data.md)\n```\n", "index.md").count("docs/") == 1


def test_a_docstring_becomes_markdown():
    docstring = (
        "Skip ``x``, as :class:`~lookless.Plan` says.\n\n    Raises:\n        PlanError: it is\n            wrong."
    )
    said = "Skip `x`, as `lookless.Plan` says.\n\n**Raises**\n\n* `PlanError`: it is\n    wrong.\n"
    assert markdown(docstring) == said
    assert markdown("Args:\n    a: b.\nBut c.") == "**Args**\n\n* `a`: b.\n\nBut c."


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method(name):
    method, table = METHODS[name], text("docs/methods.md")
    page = methods.page(method, table)
    assert f"| idea | {method.idea} |" in page
    assert f"| arXiv | [{method.paper}](" in page
    for knob in method.knobs:
        assert f"`--{knob.replace('_', '-')} " in page
    assert f"[`{name}`](methods/{name}.md)" in methods.linked(table)


NAMES = list(api.listed(text("docs/api.md")))


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_the_page_of_a_public_name(package, name):
    """It begins as its docstring, and shows the lines that define it, from where they are."""
    page, one = api.page(package, name), getattr(import_module(package), name)
    assert page.startswith(f"# {package}.{name}\n")
    assert f"| [`{name}`](api/{package}.{name}.md) |" in api.linked(text("docs/api.md"))
    if not (inspect.isclass(one) or inspect.isroutine(one)):
        return
    assert markdown(inspect.getdoc(one)).split("\n")[0] in page
    path, line = re.search(r"Source: (src/[\w/.]+), line (\d+)", page).groups()
    first = text(path).splitlines()[int(line) - 1]
    assert first == next(line for line in inspect.getsource(inspect.unwrap(one)).splitlines() if line)
    assert f"    {first}\n" in page


def test_the_signature_of_a_public_name():
    def called(self, model: int, *, budget: float = 0.5, seen: tuple[int, ...] = tuple(range(40))) -> str: ...

    assert (
        api.signature("called", called)
        == "called(model: int, *, budget: float = 0.5, seen: tuple[int, ...] = tuple(...)) -> str"
    )
    assert "\n    layers: tuple[LayerPlan, ...],\n" in api.page("lookless", "Plan")
    line = "Neurons(*ratio: float, kind: Literal['neurons'] = 'neurons', probe: float = 0.1)"
    assert f"\n{line}\n" in api.page("lookless", "Neurons")


def test_pages_of_classes_have_fields_and_methods():
    page = api.page("lookless", "Plan")
    assert "| `geometry` | `Geometry \\| None` | `None` |" in page
    assert "\n## at\n" in page
    assert "at(layers: Iterable[int], **cells: Cell) -> Plan" in page
    assert "## _" not in page
    assert "a module" in api.page("lookless", "bench").lower()
    assert "`bench_prefill`" in api.page("lookless", "bench")
    assert "LLaVA-1.5-7B" in api.page("lookless", "PRESETS")


def test_a_plan_is_folded():
    lines = ["layer  keep  ffn", "    0  full  full", "    1  full  full", "   10  none  full", "   11  full  full"]
    assert methods.folded(lines) == ["layer  keep  ffn", "  0-1  full  full", *lines[3:]]


def test_the_page_of_commands_has_each_with_its_options():
    page = commands.page()
    for path, command in commands.commands(typer.main.get_command(app)):
        if path[-1] in METHODS:
            continue
        section = page.split(f"\n## lookless {' '.join(path)}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if not parameter.hidden and parameter.param_type_name == "option":
                assert f"| `{parameter.opts[0]}" in section
        assert "\n    lookless " in section


def test_the_picture_is_what_its_script_draws():
    """python -m website.picture > docs/images/rows.svg"""
    assert text("docs/images/rows.svg") == picture.picture()


@pytest.mark.parametrize(
    "tag",
    [
        '<link rel="stylesheet" href="https://a.b/c.css">',
        '<script async src="//a.b/c.js"></script>',
        '<img alt="a" src="http://a.b/c.png">',
    ],
)
def test_what_a_page_would_load_from_another_machine(tag):
    assert foreign(f"<p>{tag}</p>")
    assert not foreign('<a href="https://a.b/c">c</a> <img src="images/c.png"> <script src="assets/c.js">')


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("lookless cal", "calibrate"),
        ("lookless plan v-s", "v-skip\nv-skip-universal"),
        ("lookless eval --skip", "--skip-bad"),
    ],
)
def test_a_shell_completes(typed, found):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_LOOKLESS_COMPLETE": "complete_bash"}
    done = CliRunner(env=words).invoke(app, [], prog_name="lookless")
    assert done.output.strip() == found
