"""Two results on the same questions: tests by hand and by enumeration, how often they err, and the command."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from helpers.cli import fails, run
from lookless import Evaluation, LooklessError, evaluate, load_data
from lookless.certification import ComparisonWarning, Scored, compare, holm, scored
from lookless.certification.differences import Pairs
from lookless.certification.independent import image_groups
from lookless.certification.margin import exact_p_value
from lookless.certification.sides import Side
from lookless.evaluation import Answer, Estimate


def result(right, task="chart", plan=True, images=None, **more):
    """An evaluation whose answers are right or not; ``images`` are the hashes of each question."""
    answers = tuple(
        Answer(
            question=str(i),
            expected="x",
            dense="x" if one and not plan else "z",
            plan="xz"[not one] if plan else None,
            image_hashes=(str(i),) if images is None else images[i],
        )
        for i, one in enumerate(right)
    )
    plain = Estimate(value=1, low=1, high=1)
    return Evaluation(data=task, model="tiny", samples=len(answers), accuracy_dense=plain, answers=answers, **more)


def graded(scores, images=None, measure="anls", task="doc"):
    names = None if images is None else tuple(frozenset([str(one)]) for one in images)
    return Scored(
        task, measure, Side(name=task), tuple((i,) for i in range(len(scores))), np.array(scores, float), names
    )


def test_mcnemar_counts_what_one_alone_has_right():
    a, b = [1] * 20 + [1] * 9 + [0] * 2 + [0] * 5, [1] * 20 + [0] * 9 + [1] * 2 + [0] * 5
    [found] = compare([scored(result(a))], [scored(result(b, plan=False))])
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert (found.n, found.score_a * 36, found.better_a, found.better_b) == (36, 29, 9, 2)
    assert found.score_b == pytest.approx(22 / 36)
    assert (found.test, found.images) == ("McNemar", 36)
    assert found.p_value == found.adjusted == pytest.approx(by_hand)
    [same] = compare([scored(result(a))], [scored(result(a))])
    assert same.p_value == 1.0
    right, wrong = ([scored(result([one] * n)) for n in (9, 6)] for one in (1, 0))
    two = compare(right, wrong)
    assert [one.p_value for one in two] == [2 / 2**9, 2 / 2**6]
    assert [one.adjusted for one in two] == [2 * 2 / 2**9, 2 / 2**6]


def test_holm_is_the_closure_of_bonferroni():
    """A hypothesis is rejected where every set of hypotheses that it is in is, by Bonferroni."""
    p = [0.011, 0.04, 0.02, 0.9]
    sets = [some for size in range(1, 5) for some in itertools.combinations(range(4), size)]
    closed = [max(min(1, len(some) * min(p[k] for k in some)) for some in sets if i in some) for i in range(4)]
    assert holm(p) == pytest.approx(closed)


def test_images_hang_together_through_a_third():
    groups = image_groups([{"a"}, {"b"}, {"a", "c"}, {"c"}, set(), set(), {"d"}, {"b"}])
    assert [[i for i, one in enumerate(groups) if one == g] for g in dict.fromkeys(groups)] == [
        [0, 2, 3],
        [1, 7],
        [4],
        [5],
        [6],
    ]
    assert sorted(set(groups)) == list(range(5))


@pytest.mark.parametrize("images", [None, [0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6, 7]])
def test_permutations_are_counted(images):
    """Scores of a group change places or stay: every choice, one by one."""
    rng = np.random.default_rng(3)
    a, b = rng.random(12).round(2), (rng.random(12) * 0.6).round(2)
    if images is None:
        a[:5] = b[:5]  # what does not differ needs no choice
    groups = range(12) if images is None else images
    sums = [sum(a[i] - b[i] for i in range(12) if groups[i] == g) for g in sorted(set(groups))]
    every = [abs(np.dot(signs, sums)) for signs in itertools.product((1, -1), repeat=len(sums))]
    by_hand = np.mean([one >= abs(sum(sums)) - 1e-9 for one in every])
    [found] = compare([graded(a, images)], [graded(b, images)])
    assert found.test == f"permutation by {'question' if images is None else 'image'}"
    assert found.p_value == pytest.approx(by_hand)
    assert found.images == (None if images is None else 8)


def test_one_group_alone_shows_nothing():
    assert Pairs(np.ones(4), np.zeros(4), np.zeros(4, int)).p_value() == 1
    assert compare([graded([1, 0.5])], [graded([0.5, 0.5])])[0].p_value == 1


def test_intervals_draw_whole_images():
    """Twice the questions about each image are no more evidence; the ratio is of sums, as images differ in size."""
    rng = np.random.default_rng(0)
    a = (rng.random(120) < 0.8).astype(float)
    b = np.where(rng.random(120) < 0.2, 1 - a, a)
    images = rng.integers(0, 40, 120)
    [once] = compare([graded(a, images)], [graded(b, images)])
    [twice] = compare([graded([*a, *a], [*images, *images])], [graded([*b, *b], [*images, *images])])
    assert (twice.difference, twice.retention, twice.p_value) == (once.difference, once.retention, once.p_value)
    assert once.difference.value == pytest.approx(b.mean() - a.mean())
    assert once.retention.value == pytest.approx(b.mean() / a.mean())
    known = [np.flatnonzero(images == one) for one in np.unique(images)]
    draws = [np.concatenate([known[i] for i in rng.integers(0, len(known), len(known))]) for _ in range(4000)]
    for estimate, slow in (
        (once.difference, [b[i].mean() - a[i].mean() for i in draws]),
        (once.retention, [b[i].mean() / a[i].mean() for i in draws]),
    ):
        assert [estimate.low, estimate.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.012)
    [alone] = compare([graded(a)], [graded(b)])
    assert alone.difference.high - alone.difference.low != once.difference.high - once.difference.low
    assert compare([graded([0.0, 0.0])], [graded([1.0, 0.0])])[0].retention is None


def at_most(errors, runs, level):
    """Whether so many errors are in line with at most that level."""
    return binomtest(errors, runs, level, alternative="greater").pvalue > 0.001


def test_how_often_equals_are_called_different():
    """Five questions about each of 40 images, on which two equal models differ together.

    Images are independent, so the permutation test errs in 5 % at most; McNemar's takes 40 images for 200, and errs in
    five times as many.
    """
    rng = np.random.default_rng(5)
    naive = by_image = alone = 0
    runs, groups = 150, np.repeat(np.arange(40), 5)
    for _ in range(runs):
        effect = np.repeat(rng.choice([-1, 0, 1], 40, p=[0.2, 0.6, 0.2]), 5)
        a = np.where(effect == 0, rng.random(200) < 0.7, effect < 0).astype(float)
        b = np.where(effect == 0, a, effect > 0).astype(float)
        naive += Pairs(a, b, None).p_value() <= 0.05
        by_image += Pairs(a, b, groups).p_value() <= 0.05
        alone += Pairs(a[::5], b[::5], None).p_value() <= 0.05
    assert at_most(by_image, runs, 0.05)
    assert at_most(alone, runs, 0.05)
    assert not at_most(naive, runs, 0.2)


def test_what_else_differs_is_said():
    old, new = result([1, 0], versions={"torch": "2.6", "lookless": "1"}), result([1, 0], versions={"torch": "2.13"})
    with pytest.warns(ComparisonWarning, match=r"^torch was 2\.6 for A and 2\.13 for B: a difference may be"):
        compare([scored(old)], [scored(new)])
    with pytest.raises(LooklessError, match="1 tasks cannot be compared with 0"):
        compare([scored(result([1]))], [])
    with pytest.raises(LooklessError, match="has no answers"):
        scored(result([]))
    with pytest.raises(LooklessError, match="doc is scored by anls and doc by acc"):
        compare([graded([1, 0])], [graded([1, 0], measure="acc")])
    with pytest.raises(LooklessError, match="a margin of 1 is not between 0 and 1"):
        compare([graded([1, 0])], [graded([1, 0])], margin=1)
    with pytest.raises(LooklessError, match="anls of doc is not from 0 to 1"):
        compare([graded([1, 70])], [graded([1, 0])], margin=0.1)


def test_the_command(tmp_path):
    for name, wins in (("a", 9), ("b", 0)):
        (tmp_path / name).mkdir()
        for task, more in (("chart", wins), ("text", 1)):
            (tmp_path / name / f"{task}.json").write_text(
                result([1] * more + [0] * (10 - more), task).model_dump_json()
            )
    done = run("compare", tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 0, done.output
    assert "A better" in done.stdout
    assert "no difference shown" in done.stdout
    assert "chart, text: McNemar's exact test, as every answer" in done.stdout
    one = tmp_path / "a" / "chart.json"
    told = json.loads(run("compare", one, tmp_path / "b" / "chart.json", "--json").stdout)
    assert told["tasks"][0]["better_a"] == 9
    assert "results of chart, text and" in fails("compare", tmp_path / "a", one)
    assert "not hold the same questions (10 and 9, the first to differ is '9')" in fails(
        "compare", one, _shorter(tmp_path)
    )
    assert "alpha of 2.0" in fails("compare", one, one, "--alpha", 2)
    assert "--score and --image are for samples of lmms-eval" in fails("compare", one, one, "--score", "acc")
    assert "does not exist" in fails("compare", one, tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    assert "has no JSON file" in fails("compare", tmp_path / "empty", one)


def test_the_command_says_what_a_margin_needs(tmp_path):
    for name, right in (("a", [1] * 60), ("b", [1] * 60), ("c", [0] * 30 + [1] * 30)):
        (tmp_path / f"{name}.json").write_text(result(right).model_dump_json())
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    shown = run("compare", a, b, "--margin", 0.05).stdout
    assert "less than 0.05?" in shown
    assert "on every task is shown (p = 0.04" in shown
    told = run("compare", a, b, "--margin", 0.01).stdout
    assert "about 299 questions would do" in told
    assert "on every task is not shown" in told
    [task] = json.loads(run("compare", a, c, "--margin", 0.3, "--json").stdout)["tasks"]
    assert task["non_inferiority"]["needed"] is None
    assert task["non_inferiority"]["upper"] > 0.5


def test_margins_of_several_tasks_are_holms():
    """Each task's p-value is its own test's, adjusted over tasks; what is needed passes at the strictest level."""
    sizes, margin = (65, 80, 60), 0.05
    sides = [scored(result([1] * n, f"task {n}")) for n in sizes]
    found = [one.non_inferiority for one in compare(sides, sides, margin=margin)]
    own = [exact_p_value(0, 0, n, margin) for n in sizes]
    assert [one.p_value for one in found] == own
    assert [one.adjusted for one in found] == holm(own)
    assert max(own) < 0.05 < min(holm(own)) < max(holm(own)), "each alone would pass"
    [needed] = {one.needed for one in found}
    assert exact_p_value(0, 0, needed, margin) <= 0.05 / 3 < exact_p_value(0, 0, needed - 1, margin)


def test_one_result_has_two_sides(tmp_path):
    """The stock model and the plan of one evaluation."""
    answers = [Answer(question=str(i), expected="x", dense="x", plan="xz"[i < 8]) for i in range(10)]
    plain = Estimate(value=1, low=1, high=1)
    found = Evaluation(data="d", model="m", samples=10, accuracy_dense=plain, answers=tuple(answers), plan_hash="p")
    (tmp_path / "a.json").write_text(found.model_dump_json())
    [task] = json.loads(run("compare", tmp_path / "a.json", "--json").stdout)["tasks"]
    assert (task["score_a"], task["score_b"], task["better_a"]) == (1, 0.2, 8)
    assert (task["a"]["plan_hash"], task["b"]["plan_hash"]) == (None, "p")
    assert task["images"] is None
    assert "do not say which questions share an image" in run("compare", tmp_path / "a.json").stdout
    (tmp_path / "dense.json").write_text(result([1, 0], plan=False).model_dump_json())
    assert "answers of one model alone" in fails("compare", tmp_path / "dense.json")


def test_results_say_what_they_are_of(reference, tmp_path):
    """Two questions about each of two images, one of which lies in two files: what is evaluated can be compared."""
    samples = load_data("reference:chart", limit=2).items
    lines = []
    for i, sample in enumerate((*samples, samples[0])):
        sample.images[0].save(tmp_path / f"{i}.png")
        for question in (sample.question, "how many bars?"):
            lines.append(json.dumps({"image": f"{i}.png", "question": question, "answer": sample.answer}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines[:5]))
    found = evaluate(reference, load_data(str(tmp_path / "mine.jsonl")), max_new_tokens=2, progress=False)
    assert [one.image_hashes for one in found.answers] == [
        load_data(str(tmp_path / "mine.jsonl")).items[i].image_hashes for i in range(5)
    ]
    again = Evaluation.model_validate_json(found.model_dump_json())
    assert again.versions == {name: importlib.metadata.version(name) for name in ("lookless", "torch", "transformers")}
    [one] = compare([scored(again)], [scored(again)], margin=0.5)
    assert (one.n, one.images, one.test, one.p_value) == (5, 2, "permutation by image", 1)
    assert one.a.data_hash == found.data_hash


def test_shared_images_change_the_test(tmp_path):
    for name, right in (("a", [1] * 20), ("b", [0] * 8 + [1] * 12)):
        images = [(str(i // 4),) for i in range(20)]
        (tmp_path / f"{name}.json").write_text(result(right, images=images).model_dump_json())
    told = run("compare", tmp_path / "a.json", tmp_path / "b.json").stdout
    assert "a permutation test of whole images, as questions share images" in told
    assert "no difference shown" in told  # two of five images; McNemar's p is 0.008


def _shorter(folder):
    path = folder / "shorter.json"
    path.write_text(result([1] * 9).model_dump_json())
    return path


def test_scores_that_are_no_shares_are_told_as_they_are(tmp_path):
    """A judge's marks from 0 to 10: no per cent, and points are those of the marks."""
    for name, marks in (("a", [8, 6, 7, 9, 5, 4]), ("b", [7, 6, 5, 9, 4, 4])):
        (tmp_path / name).mkdir()
        lines = [
            {"doc_id": i, "target": "t", "input": "q", "filtered_resps": ["r"], "mark": m} for i, m in enumerate(marks)
        ]
        (tmp_path / name / "samples_judged.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = run("compare", tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 0, done.output
    assert "6.5 5.8" in done.stdout
    assert "-0.7 [" in done.stdout
    assert "650" not in done.stdout
