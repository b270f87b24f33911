"""The page as a whole: one HTML file that holds its style, its script and its images, and asks no server for anything.

Whatever a user's files hold is escaped where it is written. The page's policy (CSP) allows no connection at all, no
image but those inside it, and of scripts and styles only those whose hashes it names: a question that held a script
would not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import files
from ..version import __version__
from . import cases, kept, sections, words
from .material import Material
from .pictures import Album

#: The sections in their order: their anchors and names.
CONTENTS = (
    ("plan", "Plan"),
    ("front", "Every plan"),
    ("certificate", "Certificate"),
    ("cases", "Cases"),
    ("tokens", "Kept tokens"),
    ("profile", "Where to look"),
    ("silence", "Silent updates"),
    ("attention", "Attention"),
    ("about", "How this was made"),
)
#: Control characters, which are no text, and marks that turn the direction of what is written after them.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str | None) -> str:
    """``text`` with a mark in place of what cannot be seen; it is escaped afterwards."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text or "")


def write_page(material: Material, out: Path) -> None:
    """Write the page of ``material`` to ``out``, whole or not at all."""
    files.write_text(out, page(material))


def page(material: Material) -> str:
    """The HTML of ``material``; the same material gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("lookless.pages"), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["clean"] = clean
    album = Album(material.data, material.reading)
    style, script = _text("page.css"), _text("page.js")
    return environment.get_template("page.html.j2").render(
        title=material.model or "a model",
        headline=words.headline(material),
        command=words.command(material),
        contents=CONTENTS,
        plan=sections.plan_view(material),
        front=sections.front_view(material),
        certificate=sections.certificate_view(material),
        cases=cases.cases_of(material, album),
        examined=material.examined_name,
        tokens=kept.kept_view(material, album),
        kinds=cases.KINDS,
        profile=sections.profile_views(material),
        silence=sections.silence_view(material),
        attention=sections.attention_view(material),
        facts=words.facts(material),
        hints=words.hints(material),
        version=__version__,
        style=Markup(style),  # ours, and without a `<`
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _text(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """As a content security policy names an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
