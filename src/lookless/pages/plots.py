"""The plots of a page, each from the records that it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ..calibration.attention_maps import AttentionProfile
from ..evaluation import Estimate
from ..plan import Plan
from ..scores import Scores
from ..search.front import Candidate
from .maps import strip
from .material import Point
from .svg import LEFT, RIGHT, TOP, Axis, around, decades, dots, group, layer_axis, line, panel, path, tag, text

FOOT = 190
#: A score below this is drawn there: it is the rounding of a float32 softmax, and zero has no logarithm.
FLOOR = 1e-6
#: Samples whose dots are drawn; of more, the first.
MOST_DOTS = 50
#: Colours of lines, by place in a legend.
INKS = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")


def ink(place: int) -> str:
    return f"ink-{INKS[place % len(INKS)]}"


def profile(task: str, measures: Mapping[str, Scores], inks: Mapping[str, str], plan: Plan | None) -> Markup:
    """Scores per layer on one task: a line and dots, one per sample, for each measure; the plan below.

    The dashed line of a measure is the highest mean among the layers whose operator the plan skips.

    Args:
        measures: scores of one unit, by measure.
        inks: a class for each measure.
    """
    layers = next(iter(measures.values())).geometry.layers
    x = layer_axis(layers)
    every = [value for scores in measures.values() for row in scores.per_sample[:MOST_DOTS] for value in row]
    y = decades(every, FOOT, TOP, FLOOR)
    marks = []
    for place, (measure, scores) in enumerate(measures.items()):
        aside = 0.14 * (place - (len(measures) - 1) / 2)
        spread = [(x.at(i + aside), y.at(v)) for row in scores.per_sample[:MOST_DOTS] for i, v in enumerate(row)]
        marks.append(dots(spread, inks[measure]))
    for measure, scores in measures.items():
        marks.append(path([(x.at(i), y.at(v)) for i, v in enumerate(scores.mean)], f"line {inks[measure]}"))
        skipped = _skipped(measure, plan)
        if skipped:
            height = y.at(max(scores.mean[i] for i in skipped))
            marks.append(line(x.start, height, x.end, height, f"threshold {inks[measure]}"))
    columns = ("attention", "ffn") if plan is not None else ()
    below = 11 * len(columns) + 9 if columns else 0
    if plan is not None:
        marks += strip(plan, columns, x, FOOT + 9)
    unit = next(iter(measures.values())).unit
    said = "; ".join(f"{measure.replace('_', ' ')}: {_by_layer(scores.mean)}" for measure, scores in measures.items())
    return panel(
        task, f"Scores of each layer on {task}. {said}", x, y, marks, x_name="decoder layer", y_name=unit, below=below
    )


def _skipped(measure: str, plan: Plan | None) -> tuple[int, ...]:
    """The layers in which the plan skips what the measure is of."""
    if plan is None:
        return ()
    of_ffn = measure.startswith("ffn")
    both = measure in ("freeze_effect", "layer_contribution")
    attention, ffn = plan.skipped("attention"), plan.skipped("ffn")
    return tuple(sorted({*attention} & {*ffn})) if both else ffn if of_ffn else attention


def _by_layer(values: Sequence[float]) -> str:
    return ", ".join(f"{i}: {value:.2g}" for i, value in enumerate(values))


def silence(task: str, pairs: Sequence[tuple[str, Scores, Scores]]) -> Markup:
    """Update size against effect on the answer: a layer's number for each operator.

    Args:
        pairs: operator, update sizes and effects.
    """
    sizes = [value for _, size, _ in pairs for value in size.mean]
    effects = [value for *_, effect in pairs for value in effect.mean]
    x, y = _spread(sizes), decades(effects, FOOT, TOP, FLOOR)
    marks = []
    for place, (operator, size, effect) in enumerate(pairs):
        for layer, (moved, felt) in enumerate(zip(size.mean, effect.mean, strict=True)):
            at = (x.at(moved), y.at(felt))
            named = tag("title", f"layer {layer}, {operator}: update {moved:.2g}, effect {felt:.2g}")
            marks.append(
                group(
                    [
                        named,
                        tag("circle", cx=at[0], cy=at[1], r=7.5, class_=f"bead {ink(place)}"),
                        text(at[0], at[1] + 3, str(layer), class_="bead-name", text_anchor="middle"),
                    ]
                )
            )
    said = "; ".join(
        f"{operator}: " + ", ".join(f"{i}: {m:.2g}, {f:.2g}" for i, (m, f) in enumerate(_means(size, effect)))
        for operator, size, effect in pairs
    )
    unit = pairs[0][2].unit
    return panel(
        task,
        f"Update size and effect on the answer of each layer on {task}. {said}",
        x,
        y,
        marks,
        x_name="update size, relative to the state",
        y_name=f"effect on the answer, {unit}",
    )


def _spread(sizes: Sequence[float]) -> Axis:
    """A logarithmic axis with a little room: the first layers may move tokens ten times as far as the others."""
    above = [size for size in sizes if size > FLOOR] or [1.0]
    return Axis(min(above) / 1.25, 1.25 * max(above), LEFT, RIGHT, log=True)


def _means(size: Scores, effect: Scores) -> Sequence[tuple[float, float]]:
    return [*zip(size.mean, effect.mean, strict=True)]


def risk_panel(points: Sequence[Point], candidates: Sequence[Candidate], by_time: bool) -> Markup:
    """The risk that the answer changes against a price: every plan of the search, and the front."""
    of = [*candidates, *(point.candidate for point in points)]
    if by_time:
        of = [c for c in of if c.time is not None]
    x = _price_axis([_price(c, by_time) for c in of])
    y = decades([c.risk for c in of], FOOT, TOP, FLOOR)
    cloud = [(x.at(_price(c, by_time)), y.at(c.risk)) for c in candidates if not by_time or c.time is not None]
    places = {i: (x.at(_price(p.candidate, by_time)), y.at(p.candidate.risk)) for i, p in enumerate(points)}
    name = _price_name(by_time)
    said = "; ".join(f"{_price(p.candidate, by_time):.0%}: {p.candidate.risk:.2g}" for p in points)
    return panel(
        f"Risk by {name}",
        f"Risk that an answer changes, on tuning samples, by {name}. {said}",
        x,
        y,
        [dots(cloud, "cloud"), path(sorted(places.values()), "line ink-a"), *_beads(places, "ink-a")],
        x_name=f"{name} kept",
        y_name="risk, tuning samples",
    )


def answers_panel(points: Sequence[Point], tasks: Sequence[str], by_time: bool, what: str) -> Markup:
    """Retention or fidelity of each task against a price, on the points that were evaluated.

    Args:
        what: ``retention`` or ``fidelity``.
    """
    known = {i: p for i, p in enumerate(points) if p.evaluations and (not by_time or p.candidate.time is not None)}
    lines = {task: _shares(known, task, what) for task in tasks}
    values = [share.value for shares in lines.values() for share in shares.values()] or [1.0]
    prices = {i: _price(point.candidate, by_time) for i, point in known.items()}
    x = _price_axis([*prices.values()])
    low, high = min(values), max(1.0, *values)
    y = Axis(max(0.0, low - 0.06 * (high - low) - 0.01), high + 0.01, FOOT, TOP, share=True)
    marks = [line(x.start, y.at(1), x.end, y.at(1), "limit")]
    for place, shares in enumerate(lines.values()):
        at = {i: (x.at(prices[i]), y.at(share.value)) for i, share in shares.items()}
        if at:
            marks += [path(sorted(at.values()), f"line {ink(place)}"), *_beads(at, ink(place))]
    name = _price_name(by_time)
    said = "; ".join(
        f"{task}: " + ", ".join(f"{prices[i]:.0%}: {share.value:.1%}" for i, share in shares.items())
        for task, shares in lines.items()
    )
    titles = {"retention": "Retention", "fidelity": "Same answers"}
    return panel(
        f"{titles[what]} by {name}",
        f"{titles[what]} by {name}, each task. {said}",
        x,
        y,
        marks,
        x_name=f"{name} kept",
        y_name=f"{what}, held-out questions",
    )


def _shares(points: Mapping[int, Point], task: str, what: str) -> dict[int, Estimate]:
    found = {i: getattr(point.evaluations.get(task), what, None) for i, point in points.items()}
    return {i: share for i, share in found.items() if share is not None}


def _price(candidate: Candidate, by_time: bool) -> float:
    return (candidate.time if by_time else candidate.kept) or 0.0


def _price_name(by_time: bool) -> str:
    return "prefill time" if by_time else "FLOPs"


def _price_axis(values: Sequence[float]) -> Axis:
    """From dear to cheap: to the right is faster."""
    fitted = around(values, LEFT, RIGHT, share=True)
    return Axis(fitted.low, fitted.high, RIGHT, LEFT, share=True)


def _beads(at: Mapping[int, tuple[float, float]], colour: str) -> list[Markup]:
    """A mark for each place of the slider; the style sheet shows the one that is chosen larger."""
    return [
        tag("circle", cx=x, cy=y, r=3, class_=f"choice bead {colour}", data_point=str(i)) for i, (x, y) in at.items()
    ]


def mass_panel(profiles: Mapping[str, AttentionProfile], inks: Mapping[str, str]) -> Markup:
    """Attention that text pays to visual tokens, per layer, a line for each task."""
    layers = len(next(iter(profiles.values())).mean_mass)
    x, y = layer_axis(layers), Axis(0, 1, FOOT, TOP, share=True)
    return _lines(
        "From text to the image",
        "Attention of text to visual tokens",
        x,
        y,
        {task: [*enumerate(profile.mean_mass)] for task, profile in profiles.items()},
        inks,
        "attention to visual tokens",
    )


def similarity_panel(profiles: Mapping[str, AttentionProfile], inks: Mapping[str, str]) -> Markup:
    """Likeness of each layer's visual attention to that of the layer before, a line for each task."""
    layers = len(next(iter(profiles.values())).mean_mass)
    x = layer_axis(layers)
    lowest = min(value for profile in profiles.values() for value in profile.mean_similarity)
    y = Axis(min(0.0, lowest), 1, FOOT, TOP)
    return _lines(
        "Like the layer before",
        "Cosine of visual attention with the layer before",
        x,
        y,
        {task: [*enumerate(profile.mean_similarity, start=1)] for task, profile in profiles.items()},
        inks,
        "cosine with the layer before",
    )


def _lines(
    title: str,
    said: str,
    x: Axis,
    y: Axis,
    lines: Mapping[str, Sequence[tuple[int, float]]],
    inks: Mapping[str, str],
    y_name: str,
) -> Markup:
    drawn = [path([(x.at(i), y.at(v)) for i, v in points], f"line {inks[task]}") for task, points in lines.items()]
    words = "; ".join(f"{task}: " + ", ".join(f"{i}: {v:.2f}" for i, v in points) for task, points in lines.items())
    return panel(title, f"{said}. {words}", x, y, drawn, x_name="decoder layer", y_name=y_name)
