"""What anyone reads of a layer, against what can be reached row by row; random plans, layers that share keys."""

from __future__ import annotations

import random

import pytest

from helpers.plans import random_plans
from helpers.slow_liveness import Reading
from lookless import Keep, LayerPlan, Plan, Skip
from lookless.layer_plan import KEPT, LIVE, NONE, TEXT, VISUAL, RowSet
from lookless.liveness import liveness, without_idle_ranks

#: one, two and no image; each ends in text
PROMPTS = ((2, 3, 3), (1, 2, 1, 4, 2), (3,), (0, 4, 1))


def kinds(parts: tuple[int, ...]) -> list[bool]:
    """Of each row, whether it is visual; text and images take turns."""
    return [index % 2 == 1 for index, count in enumerate(parts) for _ in range(count)]


def rows_of(wanted: RowSet, reading: Reading, layer: int, kept: set[int]) -> set[int]:
    text = {r for r, is_visual in enumerate(reading.visual) if not is_visual}
    words = {"none": set(), "kept": kept & text, "all": text}[wanted.text]
    if not wanted.before and any(reading.visual):
        words = {r for r in words if r > reading.visual.index(True)}
    return words | (set() if wanted.visual == "none" else reading.alive[layer])


def computed(reads, reading: Reading, kept: set[int]) -> set[tuple[str, int, int]]:
    """What the layers compute, as nodes of the graph."""
    found = set()
    for layer, read in enumerate(reads):
        work = read.work
        sets = [("query", part.query) for part in work.attention] + [("ffn", work.ffn), ("key", work.key)]
        found |= {(what, layer, r) for what, wanted in sets for r in rows_of(wanted, reading, layer, kept)}
    return found


def needed(reading: Reading, kept: set[int], cached: bool) -> set[tuple[str, int, int]]:
    return {node for node in reading.reached(kept, cached) if node[0] in ("query", "ffn", "key")}


def random_owners(rng: random.Random, layers: int) -> list[int]:
    """Some layers share the keys of an earlier one that has its own."""
    owners = [0]
    for layer in range(1, layers):
        owners.append(layer if rng.random() < 0.6 else rng.choice(sorted({*owners})))
    return owners


@pytest.mark.parametrize("last", [KEPT, TEXT, LIVE], ids=["kept", "text", "all"])
def test_what_is_computed_is_what_is_reached(last):
    """No more without ranks; and no less with them, which are taken to be read."""
    rng = random.Random(0)
    for number, plan in enumerate(random_plans(150, seed=5)):
        rows, parts = without_idle_ranks(plan.layers), rng.choice(PROMPTS)
        owners = random_owners(rng, len(rows)) if number % 2 else list(range(len(rows)))
        visual, cached = kinds(parts), rng.random() < 0.5
        reading = Reading(rows, visual, owners)
        end = len(visual) - 1
        alive_at_end = reading.alive[-1]
        kept = {"kept": {end}, "all": {r for r in range(end + 1) if not visual[r]}}[last.text]
        kept = kept | (alive_at_end if last == LIVE else set())
        ran = computed(liveness(rows, last, owners=owners, cached=cached), reading, kept)
        wanted = needed(reading, kept, cached)
        about = f"plan {number}, owners {owners}, cached {cached}\n{plan}"
        assert wanted <= ran, f"{about}\nlacks {sorted(wanted - ran)[:5]}"
        if not any(row.ranks for row in rows):
            assert ran == wanted, f"{about}\nspare {sorted(ran - wanted)[:5]}"


def test_rows_that_are_kept_may_be_anywhere():
    """Rows behind the last one that is kept are computed all the same."""
    rng = random.Random(1)
    for plan in random_plans(60, seed=6):
        visual = kinds(rng.choice(PROMPTS))
        text = [r for r, is_visual in enumerate(visual) if not is_visual]
        kept, rows = set(rng.sample(text, rng.randint(0, len(text)))), without_idle_ranks(plan.layers)
        reading = Reading(rows, visual, range(len(rows)))
        ran = computed(liveness(rows, KEPT, owners=range(len(rows))), reading, kept)
        assert needed(reading, kept, True) <= ran, plan


def test_a_tail_that_shares_keys():
    """From the owner's queries on, no row but the kept ones; the owner's keys are those that any of them reads."""
    rows = Plan.full(5).at([2], visible=Skip()).layers
    reads = liveness(rows, KEPT, owners=[0, 1, 2, 2, 1])
    assert [read.states for read in reads] == [LIVE, LIVE, KEPT, KEPT, KEPT]
    assert [read.keys for read in reads] == [LIVE, LIVE, LIVE, NONE, NONE]
    assert [len(read.work.attention) for read in reads] == [1] * 5
    assert reads[3].work.key == reads[3].work.cached == NONE
    blind = Plan.full(5).at([2, 3, 4], visible=Skip()).layers
    reads = liveness(blind, KEPT, owners=[0, 1, 2, 2, 1])
    assert [read.states for read in reads] == [LIVE, TEXT, KEPT, KEPT, KEPT]
    assert [read.keys for read in reads] == [LIVE, LIVE, TEXT, NONE, NONE]


def test_nothing_is_read_where_nothing_is_kept_but_the_cache():
    rows = [LayerPlan()] * 3
    [*_, last] = liveness(rows, NONE)
    assert (last.states, last.keys, last.work.attention, last.work.ffn) == (NONE, LIVE, (), NONE)
    assert all(read.states == read.keys == read.work.key == NONE for read in liveness(rows, NONE, cached=False))


def test_a_withdrawn_image_is_read_by_nobody():
    rows = Plan.full(4).at([2], keep=Keep(0)).layers
    assert [read.states for read in liveness(rows, LIVE)] == [LIVE, TEXT, LIVE, LIVE]
    assert [read.states for read in liveness(rows, KEPT)] == [LIVE, TEXT, LIVE, KEPT], "of those alive, which are none"


def test_rows_by_kind():
    sizes = {"text": 10, "visual": 20, "alive": 8, "kept": 2, "before": 3}
    assert [rows.size(**sizes) for rows in (NONE, KEPT, TEXT, VISUAL, LIVE)] == [0, 2, 10, 8, 18]
    behind = [RowSet(words, "all", before=False) for words in ("none", "kept", "all")]
    assert [rows.size(**sizes) for rows in behind] == [8, 10, 15]


def test_a_full_plan_runs_every_row():
    full = Plan.full(3)
    assert full.works(kept=True) == full.works() == tuple(row.work for row in full.layers)
    assert full.live().works(kept=True)[:2] == full.works()[:2]
    assert full.live().works(kept=True)[2].attention[0].query == KEPT
