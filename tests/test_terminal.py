"""Tables and figures say what the data says; the demo leaves what it promises."""

from __future__ import annotations

import io
import json

import pytest
from matplotlib.colors import to_hex
from PIL import Image
from rich.console import Console
from rich.text import Text

import lookless.demo
from lookless import Geometry, Plan, Scores, Skip, load_data, v_skip
from lookless.cli import common
from lookless.demo import MEASURES, Demo, Row, demo_table, run_demo
from lookless.evaluation import Answer, Estimate
from lookless.figures import examples_figure, profile_figure, save_figure
from lookless.layer_plan import spans
from lookless.methods import METHODS
from lookless.reference import TASKS
from lookless.terminal import methods_table, plan_table, scores_table

SMALL = Geometry(model_type="llava", layers=4, hidden=8, intermediate=16, heads=2, kv_heads=2, head_dim=4)
SCORES = Scores(
    name="visual_information_gain", per_sample=((1.0, 0.1, 0.0, 1e-3), (3.0, 0.3, 0.0, 1e-3)), geometry=SMALL, data="d"
)
FFN = Scores(name="ffn_effect", per_sample=((1.0, 0.1, 0.0, 0.5),), geometry=SMALL, data="d")


def text(table, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_plan_table_has_a_row_per_layer_and_its_source():
    told = text(plan_table(v_skip(SCORES, layers=2)))
    rows = [line.split("│")[1:4] for line in told.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["0", "full", "full"],
        ["1", "full", "full"],
        ["2", "skip", "full"],
        ["3", "skip", "full"],
    ]
    assert "v-skip" in told
    assert "2 samples of d" in told


def test_scores_table_draws_no_bar_for_nothing():
    lines = [line for line in text(scores_table(SCORES)).splitlines() if "│" in line]
    bars = [line.count("█") for line in lines]
    assert bars[0] == 24
    assert bars[0] > bars[1] > bars[3] > bars[2] == 0
    assert "2.0e+00" in lines[0]


def test_profile_figure_shades_what_the_plan_skips(tmp_path):
    plan = Plan.full(SMALL).at([1, 3], attention=Skip())
    figure = profile_figure({"a": [SCORES], "b": [SCORES, FFN]}, {"a": plan, "b": Plan.full(SMALL)})
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["a", "b"]
    assert [sorted(p.get_x() + 0.5 for p in axes.patches) for axes in panels] == [[1, 3], []]
    mean = panels[0].lines[-1].get_ydata()
    assert list(mean) == pytest.approx([2.0, 0.2, 1e-6, 1e-3])  # zero is drawn at the floor, as the title says
    *_, attention, ffn = (line.get_ydata() for line in panels[1].lines if line.get_linestyle() == "-")
    assert list(attention) == list(mean)
    assert list(ffn) == pytest.approx([1.0, 0.1, 1e-6, 0.5])
    save_figure(figure, tmp_path / "new" / "profile.png")
    assert Image.open(tmp_path / "new" / "profile.png").size[0] > 800


def test_examples_figure_marks_disagreement():
    samples = load_data("reference:chart", limit=2).items
    answers = [Answer(question="q", expected="3", dense="3", plan=p) for p in ("3", "4")]
    panels = [axes for axes in examples_figure("chart", samples, answers).axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == ["expected 3\ndense 3\nplan 3", "expected 3\ndense 3\nplan 4"]
    colours = [to_hex(axes.xaxis.label.get_color()) for axes in panels]
    assert colours[0] != colours[1]


def test_spans():
    assert [" ".join(spans(x)) for x in ((), (3,), (0, 1), (0, 2, 3, 4, 7))] == ["", "3", "0-1", "0 2-4 7"]


def busy_demo() -> Demo:
    """As on a machine that does much else: times, and so rows, are as long as they get."""
    interval = Estimate(value=1.0, low=0.991, high=1.0)
    row = Row(
        task="existence",
        skipped_layers=(0, 2, 4, 6, 8, 10, 11),
        accuracy_dense=interval,
        accuracy_plan=interval,
        retention=interval,
        fidelity=interval,
        flops_kept=0.87654,
        prefill_dense_ms=12345.6,
        prefill_plan_ms=23456.7,
    )
    about = {"torch_version": "2", "transformers_version": "5", "machine": "m", "threads": 2, "dtype": "float32"}
    return Demo(**about, visual_tokens=144, text_tokens=12.5, test_samples=200, rows=(row,))


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("table", [demo_table(busy_demo()), methods_table(METHODS), scores_table(SCORES)])
def test_nothing_is_cut_where_it_is_narrow(monkeypatch, width, table):
    """Nor in a pipe, which is taken to be 80 columns wide. What may not be wrapped keeps its lines."""
    printed = io.StringIO()
    monkeypatch.setattr(common, "out", Console(width=width, file=printed))
    common.print_whole(table)
    told = printed.getvalue()
    assert "…" not in told
    for column in table.columns:
        for cell in map(str, (column.header, *column.cells)):
            plain = Text.from_markup(cell).plain
            for part in plain.splitlines() if column.no_wrap else plain.split():
                assert part in told


@pytest.mark.long
def test_demo_leaves_what_it_promises(tmp_path, monkeypatch):
    """Of two tasks."""
    tasks = list(TASKS)[:2]
    monkeypatch.setattr(lookless.demo, "tasks_of", lambda model: tasks)
    told = []
    demo = run_demo(tmp_path, test_samples=8, log=told.append)
    assert [row.task for row in demo.rows] == list(tasks)
    for row in demo.rows:
        assert len(row.skipped_layers) == 7
        assert 0.8 < row.flops_kept < 0.9
        assert row.prefill_dense_ms > 0
        folder = tmp_path / row.task
        assert Plan.from_pretrained(folder / "plan").skipped("attention") == row.skipped_layers
        assert [Scores.load(folder / f"{name}.json").samples for name in MEASURES] == [20, 20]
        assert len(json.loads((folder / "evaluation.json").read_text())["answers"]) == 8
        assert Image.open(folder / "examples.png").size[0] > 800
        assert any(row.task in line for line in told)
    assert Demo.model_validate_json((tmp_path / "demo.json").read_text()) == demo
    assert (tmp_path / "profile.png").exists()
