"""Figures name what they show."""

from __future__ import annotations

from itertools import combinations

from matplotlib.text import Text

from lookless.figures import Retained, TimeKept, retention_figure, time_figure


def test_every_method_is_named_and_no_name_covers_another():
    """Eight methods at nearly the same place at their papers' settings, and all in a list at a budget."""
    crowd = [Retained(f"method-{i}", 0.6 + 0.005 * i, 1 - 0.001 * i, 0.9, 1.0) for i in range(8)]
    figure = retention_figure({"a model": {"at the paper's setting": crowd, "at 60% of the FLOPs": crowd}})
    figure.draw_without_rendering()
    scattered, ranked = figure.axes
    names = [text for text in scattered.texts if text.get_text()]
    assert {text.get_text() for text in names} == {m.method for m in crowd}
    boxes = [Text.get_window_extent(text) for text in names]  # without the line to its point
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert [label.get_text() for label in ranked.get_yticklabels()] == [m.method for m in reversed(crowd)]


def test_the_legend_names_plans_and_models():
    points = [TimeKept(plan, model, 0.5, 0.4 + 0.1 * i) for i, plan in enumerate("ab") for model in ("m", "n")]
    [legend] = time_figure(points, "on a machine").legends
    assert {text.get_text() for text in legend.get_texts()} > {"a", "b", "m", "n"}
