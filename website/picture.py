"""The picture of docs/concepts.md: which rows of a small prompt each layer of a plan computes.

python -m website.picture > docs/images/rows.svg
"""

from __future__ import annotations

from lookless import Keep, Plan, Skip

SVG = "http://www.w3.org/2000/svg"
TEXT, VISUAL = 2, 6
PLAN = (
    Plan.full(6)
    .at([1], attention=Skip())
    .at([2], attention=Skip(), ffn=Skip())
    .at([3], keep=Keep(0.5, rank="diversity"))
    .at([4], keep=Keep(0))
)
SAID = ("as trained", "attention: skip", "attention and ffn: skip", "keep: the best half", "keep: none", "and so on")
OPERATORS = {"query": "queries", "key": "keys", "ffn": "FFN"}
#: Width of all, height of a layer, size of a square and its place, in pixels.
WIDTH, HEIGHT, SQUARE, STEP = 480, 48, 13, 16
COLOURS = {"text": "#00796b", "visual": "#f57c00", "line": "#9e9e9e", "ink": "#212121"}


def picture() -> str:
    """As SVG. Full squares are rows that an operator computes, empty ones rows that pass by; dropped ones are gone."""
    layers = list(zip(SAID, PLAN.rows(visual=VISUAL, text=TEXT), strict=True))
    tall = 84 + HEIGHT * len(layers)
    parts = [
        f'<svg xmlns="{SVG}" viewBox="0 0 {WIDTH} {tall}" font-family="sans-serif" font-size="13">',
        "<title>Which rows each layer of a plan computes</title>",
        f'<rect width="{WIDTH}" height="{tall}" rx="6" fill="#fff"/>',
        *(words(left(n), 22, name, "bold") for n, name in enumerate(OPERATORS.values())),
    ]
    for number, (said, rows) in enumerate(layers):
        top = 34 + HEIGHT * number
        parts.append(words(12, top + 12, f"layer {number}: {said}"))
        kept = max(rows["key"] - TEXT, 0)
        for n, operator in enumerate(OPERATORS):
            parts += strip(left(n), top + 19, rows[operator] - TEXT, kept)
    return "\n".join([*parts, *legend(tall - 38), "</svg>", ""])


def left(column: int) -> int:
    return 12 + column * 158


def strip(x: float, y: float, computed: float, kept: float) -> list[str]:
    """The rows of one operator: visual ones, those that it computes first, then text."""
    squares = [square(x + STEP * n, y, "visual", full=n < computed) for n in range(VISUAL) if n < max(kept, computed)]
    return [*squares, *(square(x + STEP * (VISUAL + n), y, "text", full=True) for n in range(TEXT))]


def square(x: float, y: float, kind: str, *, full: bool) -> str:
    fill = COLOURS[kind] if full else "none"
    return f'<rect x="{x}" y="{y}" width="{SQUARE}" height="{SQUARE}" rx="2" fill="{fill}" stroke="{COLOURS[kind]}"/>'


def words(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" fill="{COLOURS["ink"]}" font-weight="{weight}">{text}</text>'


def legend(y: float) -> list[str]:
    shown = [
        ("visual", True, "visual token"),
        ("text", True, "text token"),
        ("visual", False, "passes by, not computed"),
    ]
    parts = [f'<path d="M12 {y - 6}H{WIDTH - 12}" stroke="{COLOURS["line"]}"/>']
    for (kind, full, text), x in zip(shown, (12, 142, 258), strict=True):
        parts += [square(x, y + 8, kind, full=full), words(x + 20, y + 19, text)]
    return parts


if __name__ == "__main__":
    print(picture(), end="")
