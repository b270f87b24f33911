"""Work split over processes is what one process does, to the bit; and what a killed run has finished is used again."""

from __future__ import annotations

import gc

import pytest

from helpers.cli import fails
from helpers.loaded import samples_of, tiny_loaded
from helpers.models import LAYERS, tiny_llava
from helpers.teams import pretend
from lookless import Samples, Skip, calibrate, evaluate, load_data
from lookless.calibration.gradients import diagnose
from lookless.data import Sample
from lookless.each import each
from lookless.errors import DataError, LooklessError
from lookless.plan import Plan
from lookless.processes import Team, own_device, place, sendable, team_of
from lookless.search.additive import measure_additive
from lookless.search.joint import joint_search
from lookless.search.menu import Menu
from lookless.search.objective import Objective, effects_of
from lookless.search.price import by_flops
from lookless.unfinished import Unfinished

BATCHES = ("one image", "image first", "image last", "two images", "two images touching")
ONE_AFTER_ANOTHER = samples_of(*BATCHES)
TASKS = (samples_of(*BATCHES[:3], *BATCHES[:2]), samples_of(*BATCHES[3:], *BATCHES[2:]))
SMALL = Menu(LAYERS, shares=(0.5, 0.25), ranks=("diversity", "random"), prune_at=(0, 2))


@pytest.fixture(scope="module")
def tiny():
    return tiny_loaded(tiny_llava())


def squares(worker, items):
    for item in items:
        if item < 0:
            raise DataError(f"{item} is negative")
        worker.held.setdefault("seen", []).append(item)
        yield {"square": item * item}


def test_the_environment_says_which_process_this_is():
    assert place({}) == place({"RANK": "0"}) == place({"RANK": "0", "WORLD_SIZE": "1"}) == (0, 1)
    assert place({"RANK": "2", "WORLD_SIZE": "4"}) == (2, 4)
    for rank in ("4", "-1", "a"):
        with pytest.raises(LooklessError, match=f"RANK={rank} of WORLD_SIZE=4"):
            place({"RANK": rank, "WORLD_SIZE": "4"})
    several = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert own_device("cuda", several) == "cuda:1"
    assert own_device("cuda:0", several) == "cuda:0"
    assert own_device("cpu", several) == "cpu"
    assert own_device("cuda", {}) == "cuda"


def test_a_command_that_cannot_be_split_says_so(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "methods runs in one process, and this is one of 2" in fails("methods")


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_each_item_once_and_in_order(monkeypatch, tiny, size):
    workers = pretend(monkeypatch, tiny, size)
    found = each(team_of(tiny), range(7), squares)
    assert found == [{"square": i * i} for i in range(7)]
    assert [worker.held.get("seen", []) for worker in workers] == [[*range(7)][i::size] for i in range(size)]
    assert each(team_of(tiny), [], squares) == []
    other = tiny_loaded(tiny.model)  # a model that the others do not have is run here alone
    assert each(team_of(other), range(3), squares, at=[0, 0, 0]) == found[:3]
    assert sum(len(worker.held["seen"]) for worker in workers if worker.held) == 7


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_first_item_that_fails_is_named(monkeypatch, tiny, size):
    pretend(monkeypatch, tiny, size)
    with pytest.raises(DataError, match="-3 is negative"):
        each(team_of(tiny), [0, 1, 2, -3, -4, 5, -6], squares)


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_finished_is_not_done_again(monkeypatch, tiny, tmp_path, size):
    workers = pretend(monkeypatch, tiny, size)
    kept = Unfinished.beside(tmp_path / "out.json")
    assert kept.folder.name == "out.json.unfinished"
    with pytest.raises(DataError):
        each(team_of(tiny), [0, 1, 2, -3], squares, kept=kept.of("a", "data"))
    (kept.folder / "a.2.json").write_text("{")  # as no file of ours can be, but a disk may lose any
    for worker in workers:
        worker.held.clear()
    found = each(team_of(tiny), [0, 1, 2, 3], squares, kept=kept.of("a", "data"))
    assert found == [{"square": i * i} for i in range(4)]
    assert sorted(item for worker in workers for item in worker.held["seen"]) == [2, 3]
    assert kept.of("a", "data").known(4)[0] == dict(enumerate(found))
    assert kept.of("a", "other data").known(4)[0] == kept.of("b", "data").known(4)[0] == {}
    (kept.folder / "mine.json").write_text("a user's own")
    kept.remove()
    assert [path.name for path in kept.folder.iterdir()] == ["mine.json"]
    assert Unfinished.beside(tmp_path) is None  # no file, as a pipe is none


@pytest.mark.parametrize("size", [2, 3])
def test_scores_of_several_processes_are_those_of_one(monkeypatch, tiny, size):
    def measured():
        found = [calibrate(tiny, ONE_AFTER_ANOTHER, progress=False), *diagnose(tiny, ONE_AFTER_ANOTHER).values()]
        return [scores.model_copy(update={"seconds": None}) for scores in found]

    alone = measured()
    pretend(monkeypatch, tiny, size)
    assert measured() == alone


@pytest.mark.parametrize("size", [2, 3])
def test_answers_of_several_processes_are_those_of_one(monkeypatch, reference, size):
    samples = load_data("reference:text", limit=7)  # four batches, the last of one
    plan = Plan.full(12).at([1, 2, 3], attention=Skip())

    def found():
        return evaluate(reference, samples, plan, batch=2, max_new_tokens=4, progress=False)

    alone = found()
    workers = pretend(monkeypatch, reference, size)
    asked = []
    for worker in workers:
        worker.loaded = Asked(worker.loaded, asked)
    monkeypatch.setattr("lookless.evaluation.team_of", lambda _: Team(workers[0], size))
    assert found() == alone
    assert sorted(asked) == [1, 1, 2, 2, 2, 2, 2, 2]  # whole batches, dense and under the plan


class Asked:
    """``Loaded`` that notes how many questions it is asked together."""

    def __init__(self, loaded, asked):
        self.model, self._loaded, self._asked = loaded.model, loaded, asked

    def answer(self, samples, **settings):
        self._asked.append(len(samples))
        return self._loaded.answer(samples, **settings)


def searched(tiny):
    """A whole search, and how many samples it ran."""
    objective = Objective(tiny, TASKS, progress=False)
    additive = measure_additive(objective, SMALL, progress=False)
    kept = by_flops(objective.geometry, objective.visual, objective.text)
    settings = {"tasks": ("a", "b"), "budgets": (0.8, 0.6), "kept": kept, "proposals": 12, "progress": False}
    front = joint_search(objective, SMALL, additive, **settings)
    return (
        front.model_copy(update={"seconds": 0.0}),
        additive.model_copy(update={"seconds": 0.0}),
        (objective.passes, len(objective)),
    )


@pytest.mark.parametrize("size", [2, 3])
def test_a_search_by_several_processes_is_that_of_one(monkeypatch, tiny, size):
    alone = searched(tiny)
    front, (passes, samples) = alone[0], alone[2]
    assert passes < front.evaluations * samples, "no plan was given up: the test would not see what came after"
    workers = pretend(monkeypatch, tiny, size)
    assert searched(tiny) == alone
    gc.collect()
    assert each(team_of(tiny), range(size), squares) is not None  # what is released is told with the next task
    assert all([*worker.held] == ["seen"] for worker in workers)


def test_plans_on_many_samples(monkeypatch, tiny):
    plans = [Plan.full(LAYERS).at([layer], attention=Skip()) for layer in range(3)]
    alone = effects_of(tiny, ONE_AFTER_ANOTHER, plans, position="last", progress=False)
    pretend(monkeypatch, tiny, 2)
    assert effects_of(tiny, ONE_AFTER_ANOTHER, plans, position="last", progress=False) == alone
    with pytest.raises(DataError, match="none of the 1 samples"):
        effects_of(tiny, Samples("bare", (Sample((), "no image", ""),)), plans, progress=False)


def test_what_cannot_be_sent_is_told_in_words():
    class LocalError(Exception):
        pass

    assert "here" in str(sendable(LocalError("here")))
    known = DataError("line 3")
    assert sendable(known) is known
