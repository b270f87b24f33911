"""Laws of plans, tried on plans drawn at random: joining, setting cells, dead work, and files."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookless import Full, Keep, LayerPlan, Neurons, Plan, PlanError, Sink, Skip, Top, Window
from lookless.layer_plan import COLUMNS
from lookless.ranks import RANKS

LAYERS = 4
FULL = Plan.full(LAYERS)
settings.register_profile(
    "plans",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("plans")

shares = st.floats(0, 1, allow_nan=False)
ranks = st.sampled_from([name for name, rank in RANKS.items() if rank.reads in ("this", "nothing")])
some = st.one_of(
    st.builds(lambda ratio, rank: {"ratio": ratio, "rank": rank}, shares, ranks),
    st.builds(lambda count, rank: {"count": count, "rank": rank}, st.integers(0, 700), ranks),
)
tops, keeps, nothing = some.map(lambda given: Top(**given)), some.map(lambda given: Keep(**given)), st.just(Full())
CELLS = {
    "keep": st.one_of(nothing, nothing, keeps, st.just(Keep(0))),
    "attention": st.one_of(nothing, st.just(Skip()), st.integers(1, 999).map(Window), tops),
    "ffn": st.one_of(nothing, st.just(Skip()), st.floats(0.01, 1).map(Neurons), tops),
    "visible": st.one_of(nothing, nothing, st.just(Skip()), st.just(Sink())),
    "decode": st.one_of(nothing, nothing, st.just(Skip()), tops),
    "before": st.one_of(nothing, nothing, st.just(Skip())),
}
rows = st.builds(LayerPlan, **CELLS)
plans = st.lists(rows, min_size=LAYERS, max_size=LAYERS).map(lambda drawn: Plan(layers=tuple(drawn)))
columns = st.sets(st.sampled_from(COLUMNS))


def only(plan: Plan, chosen: set[str]) -> Plan:
    """The columns ``chosen`` of ``plan``; the others are full."""
    kept = [LayerPlan(**{c: cell for c, cell in row if c in chosen}) for row in plan.layers]
    return Plan(layers=tuple(kept))


@given(plans)
def test_a_plan_is_its_file(plan):
    """The bytes too, and the hash, which full cells and provenance are no part of."""
    text = plan.to_json()
    again = Plan.model_validate(json.loads(text))
    assert (again, again.to_json(), again.hash) == (plan, text, plan.hash)
    assert plan.made_by(method="x", seed=3).hash == plan.hash
    assert str(again) == str(plan)


@given(plans, columns)
def test_a_plan_is_its_columns_joined(plan, chosen):
    """In any order, with the full plan as nothing."""
    mine, rest = only(plan, chosen), only(plan, set(COLUMNS) - chosen)
    assert (mine | rest).layers == (rest | mine).layers == plan.layers
    assert (plan | FULL).layers == (FULL | plan).layers == plan.layers


@given(plans, plans)
def test_joining_refuses_what_both_set(one, other):
    pairs = [
        (getattr(a, column), getattr(b, column))
        for a, b in zip(one.layers, other.layers, strict=True)
        for column in COLUMNS
    ]
    if any(not a.is_full and not b.is_full for a, b in pairs):
        with pytest.raises(PlanError, match="both plans set"):
            one | other
    else:
        joined = [getattr(row, column) for row in (one | other).layers for column in COLUMNS]
        assert joined == [b if a.is_full else a for a, b in pairs]


@given(plans, st.sets(st.integers(0, LAYERS - 1)), st.sampled_from(COLUMNS), st.data())
def test_setting_a_cell_sets_it_and_no_other(plan, layers, column, data):
    cell = data.draw(CELLS[column])
    changed = plan.at(layers, **{column: cell})
    for index, (before, after) in enumerate(zip(plan.layers, changed.layers, strict=True)):
        assert dict(after) == {**dict(before), **({column: cell} if index in layers else {})}
    assert changed.at(layers, **{column: cell}) == changed


@given(plans, st.integers(0, 600), st.integers(1, 90))
def test_dead_work_is_work_that_is_left_out(plan, visual, text):
    """Once is enough; no row is added, and no token dies or lives that did not."""
    live = plan.live()
    assert live.live() == live
    assert live.alive(visual) == plan.alive(visual)
    for fewer, all_of_them in zip(live.rows(visual, text), plan.rows(visual, text), strict=True):
        assert all(fewer[operator] <= all_of_them[operator] for operator in fewer)
        assert fewer["query"] >= text
    for row, later in zip(live.layers, (*live.layers[1:], None), strict=True):
        if later is None or later.keep.withdraws:  # nobody reads what a visual token becomes here
            assert row.attention.skips
            assert row.ffn.skips


@given(plans, st.integers(0, 600), st.integers(0, 90))
def test_rows_are_no_more_than_there_are(plan, visual, text):
    """And no token comes back to life."""
    alive = plan.alive(visual)
    assert all(later <= earlier for earlier, later in zip((visual, *alive), alive, strict=False))
    for row, here in zip(plan.rows(visual, text), alive, strict=True):
        assert all(text <= row[operator] <= text + here for operator in row)
