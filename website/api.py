"""A page for each public name: its signature, its docstring, what it raises, and its source."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from lookless import errors

from .docstrings import markdown

SOURCE = Path(errors.__file__).parents[1]
#: Its packages, in the order of docs/api.md, are its headings; the first that has a thing has its page.
_HEADING = re.compile(r"^## (lookless[\w.]*)$", re.MULTILINE)
_ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def listed(table: str) -> Iterator[tuple[str, str]]:
    """Package and name of each row of docs/api.md, which is ``table``."""
    parts = _HEADING.split(table)[1:]
    for package, rows in zip(parts[::2], parts[1::2], strict=True):
        yield from ((package, name) for name in _ROW.findall(rows))


def pages(table: str) -> dict[str, str]:
    """Each page by its place below ``api/``."""
    return {f"{package}.{name}": page(package, name) for package, name in listed(table)}


def linked(table: str) -> str:
    """docs/api.md, with each row leading to its page."""
    parts = _HEADING.split(table)
    for place in range(1, len(parts), 2):
        package = parts[place]
        rows = _ROW.sub(lambda row, package=package: f"| [`{row[1]}`](api/{package}.{row[1]}.md) |", parts[place + 1])
        parts[place : place + 2] = [f"## {package}", rows]
    return "".join(parts)


def page(package: str, name: str) -> str:
    one = getattr(import_module(package), name)
    parts = [f"# {package}.{name}", *told(name, one), *source(one)]
    return "\n\n".join(parts) + "\n"


def told(name: str, one: Any) -> list[str]:
    """What it is, from its signature and its docstring."""
    if isinstance(one, ModuleType):
        names = ", ".join(f"`{public}`" for public in public_names(one))
        return ["A module.", markdown(inspect.getdoc(one) or ""), f"It has {names}."]
    if inspect.isclass(one):
        return [code(signature(name, one)), markdown(inspect.getdoc(one) or ""), *fields(one), *members(one)]
    if inspect.isroutine(one):
        return [code(signature(name, one)), markdown(inspect.getdoc(one) or "")]
    return [f"Data, of type `{type(one).__name__}`.", code(shown(one))]


def public_names(module: ModuleType) -> list[str]:
    made = [name for name, one in vars(module).items() if getattr(one, "__module__", "").startswith(module.__name__)]
    return sorted(name for name in getattr(module, "__all__", made) if name[0] != "_")


def shown(data: Any) -> str:
    return "\n".join(map(str, data)) if isinstance(data, dict) else repr(data)


def code(text: str) -> str:
    return f"```python\n{text}\n```"


def signature(name: str, one: Any) -> str:
    """As it is called; one parameter a line where they are many."""
    try:
        found = inspect.signature(one)
    except ValueError:
        return name
    parameters = list(_parameters(found, _annotations(one)))
    back = "" if found.return_annotation in (found.empty, None) else f" -> {_plain(found.return_annotation)}"
    line = f"{name}({', '.join(parameters)}){back}"
    return line if len(line) <= 88 else f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){back}"


def _annotations(one: Any) -> dict[str, str]:
    """Types of the fields of a class as its code has them, which is shorter than what pydantic makes of them."""
    classes = reversed(one.__mro__) if inspect.isclass(one) else ()
    return {name: text for base in classes for name, text in vars(base).get("__annotations__", {}).items()}


def _parameters(found: inspect.Signature, types: dict[str, str]) -> Iterator[str]:
    """Each as text, without what a caller does not give, and with the star behind which all are given by name."""
    starred = False
    for name, parameter in found.parameters.items():
        if name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            yield "*"
        starred |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        text = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
        if parameter.annotation is not parameter.empty:
            text += f": {_plain(types.get(name, parameter.annotation))}"
        yield text if parameter.default is parameter.empty else f"{text} = {_short(parameter.default)}"


def _short(default: Any) -> str:
    text = repr(default)
    return text if len(text) <= 40 else f"{type(default).__name__}(...)"


def _plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def fields(one: type) -> list[str]:
    """The fields of a frozen record, each with its default."""
    if not issubclass(one, BaseModel):
        return []
    rows = [
        f"| `{name}` | `{_cell(one.__annotations__.get(name, _plain(field.annotation)))}` | {_default(field)} |"
        for name, field in one.model_fields.items()
    ]
    return ["\n".join(["| field | type | default |", "|---|---|---|", *rows])] if rows else []


def _cell(annotation: Any) -> str:
    return _plain(annotation).replace("|", "\\|")


def _default(field: Any) -> str:
    return "" if field.is_required() else f"`{_cell(_short(field.get_default(call_default_factory=True)))}`"


def members(one: type) -> Iterator[str]:
    """Its own methods and properties, as sections."""
    for name, member in vars(one).items():
        plain = getattr(member, "__func__", member)
        if name[0] == "_":
            continue
        if isinstance(member, (property, cached_property)):
            yield f"## {name}"
            yield markdown(inspect.getdoc(member) or "")
        elif inspect.isfunction(plain):
            yield f"## {name}"
            yield code(signature(name, getattr(one, name)))
            yield markdown(inspect.getdoc(getattr(one, name)) or "")


def source(one: Any) -> list[str]:
    """Where it is defined, and the lines themselves, folded."""
    plain = one if isinstance(one, ModuleType) else inspect.unwrap(one)
    try:
        lines, start = inspect.getsourcelines(plain)
        path = Path(inspect.getsourcefile(plain) or "").relative_to(SOURCE)
    except (TypeError, ValueError):
        return []
    if isinstance(one, ModuleType):
        return [f"Source: `src/{path}`"]
    body = "".join(f"    {line}" if line.strip() else "\n" for line in lines)
    return [f'??? abstract "Source: src/{path}, line {start}"\n\n    ```python\n{body}    ```']
