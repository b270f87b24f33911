"""What was examined, section by section, as Markdown and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..markdown import markdown_table

Verdict = Literal["right", "wrong", "not tried"]


@dataclass(frozen=True)
class Section:
    """One thing that was examined.

    Attributes:
        title: what.
        facts: in words, by name.
        verdict: None where there is nothing to be right or wrong.
    """

    title: str
    facts: dict[str, str]
    verdict: Verdict | None = None


def page(sections: list[Section]) -> str:
    """Markdown: a heading and a table for each section."""
    parts = []
    for section in sections:
        heading = section.title if section.verdict is None else f"{section.title}: {section.verdict}"
        rows = [(name, _in_a_cell(fact)) for name, fact in section.facts.items()]
        parts.append(f"### {heading}\n\n{_table(rows)}\n")
    return "\n".join(parts)


def record(sections: list[Section]) -> dict[str, Any]:
    """Plain JSON."""
    return {
        "is_right": not wrong(sections),
        "sections": [{"title": s.title, "verdict": s.verdict, "facts": s.facts} for s in sections],
    }


def wrong(sections: list[Section]) -> list[str]:
    """The titles of the sections that are wrong."""
    return [section.title for section in sections if section.verdict == "wrong"]


def _table(rows: list[tuple[str, str]]) -> str:
    """Words, to the left."""
    return markdown_table(("", ""), rows).replace("---:", "---")


def _in_a_cell(text: str) -> str:
    """One line in which no bar ends the cell."""
    return " ".join(text.split()).replace("|", "\\|")
