"""Prose is wrapped and nothing else is; a generated block is replaced and what people wrote stays."""

from __future__ import annotations

from lookless.markdown import COLUMNS, markdown_table, spliced, wrapped

LONG = "word " * 40 + "end"


def test_prose_is_wrapped_and_nothing_else():
    table = markdown_table(("", "a"), [(LONG, "1")])
    fixed = [f"## {LONG}", f"![{LONG}](x.png)", table, f"    {LONG}", f"<!-- {LONG} -->"]
    assert wrapped("\n\n".join(fixed)) == "\n\n".join(fixed)
    text = wrapped(f"{LONG}\n\n* {LONG}")
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert " ".join(text.split()) == f"{LONG} * {LONG}"
    assert all(line.startswith("  ") for line in text.split("* ")[1].splitlines()[1:])
    assert wrapped(wrapped(LONG)) == wrapped(LONG)


def test_a_block_is_replaced():
    begin, end = "<!-- a -->", "<!-- b -->"
    first = spliced("mine\n", begin, end, "one\n")
    assert first == "mine\n\n<!-- a -->\n\none\n\n<!-- b -->\n"
    assert spliced(first + "after\n", begin, end, "two") == first.replace("one", "two") + "after\n"
    assert spliced("", begin, end, "one") == "<!-- a -->\n\none\n\n<!-- b -->\n"
