"""The public names, one by one: docs/api.md lists each with what it is, and this file writes the page.

python tests/test_public_api.py > docs/api.md
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from helpers.documented import functions, missing

PACKAGES = ("lookless", "lookless.data", "lookless.search", "lookless.bench", "lookless.certification")
PACKAGES += ("lookless.routing", "lookless.fitted", "lookless.errors")
HEAD = """# Public names

What is listed here stays as it is within a minor version; all else may change.
`help(lookless.apply)` shows arguments, units and errors; methods are in [methods](methods.md).
Written by `python tests/test_public_api.py`.
"""


def names(package: str) -> list[str]:
    """Of a module without a list, what it defines."""
    module = import_module(package)
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [n for n, one in vars(module).items() if getattr(one, "__module__", "") == package and n[0] != "_"]
    return sorted(name for name in listed if name != "__version__")


def what(package: str, name: str) -> str:
    """The first sentence of its docstring."""
    one = getattr(import_module(package), name)
    if not (inspect.isroutine(one) or inspect.isclass(one) or isinstance(one, ModuleType)):
        return "data"
    text = " ".join((one.__doc__ or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    return re.split(r"(?<=[.])\s(?=[A-Z`])|::", text)[0].rstrip(".:").replace("|", "\\|") if text else ""


def page() -> str:
    parts = [HEAD]
    for package in PACKAGES:
        rows = [f"| `{name}` | {what(package, name)} |" for name in names(package)]
        parts.append("\n".join([f"## {package}", "", "| name | what it is |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def test_every_public_name_is_listed_and_says_what_it_is():
    for package in PACKAGES:
        for name in names(package):
            assert what(package, name), f"{package}.{name} has no docstring"
    assert (Path(__file__).parents[1] / "docs" / "api.md").read_text() == page()


PUBLIC = {
    f"{function.__module__}.{function.__qualname__}": function
    for package in PACKAGES
    for name in names(package)
    for _, function in functions(getattr(import_module(package), name), name)
    if function.__module__.startswith("lookless")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_documents_its_arguments_and_errors(name):
    assert missing(PUBLIC[name]) == []


def test_what_a_docstring_leaves_out_is_found():
    def told(samples, plan):
        """Of ``samples`` under ``plan``.

        Raises:
            ValueError: there are none.
        """
        raise ValueError("none")

    def untold(samples, plan):
        """Of all samples.

        Raises:
            TypeError: there are none.
        """
        raise ValueError("none")

    assert missing(told) == []
    assert missing(untold) == ["argument plan", "error ValueError"]


def test_errors_are_a_tree():
    from lookless import errors

    classes = [getattr(errors, n) for n in names("lookless.errors") if inspect.isclass(getattr(errors, n))]
    assert all(issubclass(one, errors.LooklessError) for one in classes)


if __name__ == "__main__":
    print(page(), end="")
