"""Every metric against lmms-eval's own scores, and against a slow reference that is written another way."""

from __future__ import annotations

import random
import string
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from helpers.lmms_eval_cases import CASES
from lookless import DataError, LooklessError
from lookless.answers import Answer, scored_by, units_of
from lookless.data import Sample, Samples
from lookless.estimates import Units, figure, mean_estimate, mean_retained, paired_difference, retained
from lookless.evaluation import retention_estimate
from lookless.metrics import METRICS, metric_named, normal, number


@pytest.mark.parametrize(("metric", "answer", "right", "score"), CASES)
def test_scores_are_those_of_lmms_eval(metric, answer, right, score):
    assert metric_named(metric).score(answer, right) == score


def test_every_metric_has_cases():
    ours = {"exact", "numeric", "yes-no"}  # of which lmms-eval has none, or the same under another name
    assert {name.partition(":")[0] for name, *_ in CASES} == METRICS.keys() - ours


WORDS = [
    *("the", "a", "yes", "no", "Yes.", "No,", "B", "B.", "(C)", "D:", "A)", "answer", "the answer is", "answer is"),
    *("I choose", "one", "ten", "none", "1,000", "1000", "3.5", "5%", "0", "0.05", "-3", "dont", "don't", "what's"),
    *("whats", "cat", "cats", "U.S.", "n", "y", "/", "?", "!", ";", ",", ".", "1e3", "100", "105", "95"),
    *("94.9", "unknown", "Red", "red"),
]


def texts(seed, count=400):
    """Short answers of odd words."""
    draw = random.Random(seed)
    for _ in range(count):
        joint = draw.choice([" ", " ", ""])
        yield joint.join(draw.choice(WORDS) for _ in range(draw.choice([1, 1, 2, 3, 5])))


def pairs(seed):
    answers, others = [*texts(seed)], [*texts(seed + 1)]
    return [*zip(answers, others, strict=True), *pairwise(answers), *((a, a) for a in answers)]


def slow_gqa(answer, right):
    kept = ["".join(c for c in text.lower() if c not in string.punctuation) for text in (answer.strip(), right)]
    return kept[0] == kept[1]


def slow_contains(answer, right):
    a, b = ([*text.strip().lower()] for text in (answer, right))
    return any(a[i : i + len(b)] == b for i in range(len(a) - len(b) + 1))


def slow_choice(answer, right):
    """All ways of saying a letter, with the rank of each, sorted."""
    text = answer.strip()
    for mark in (",", ".", "!", "?", ";", ":", "'", '"'):
        while text.startswith(mark) or text.endswith(mark):
            text = text.removeprefix(mark).removesuffix(mark)
    padded, bare = f" {text} ", text.strip()
    said = []
    for letter in "ABCDEFGH":
        for at, character in enumerate(padded):
            if character != letter:
                continue
            before, after = padded[at - 1], padded[at + 1]
            ranks = [0, 2 * (after == " "), 3 * (after == ")"), 4 * (after == ":"), 5 * (after == ".")]
            ranks.append(6 * (before == "(" and after == ")"))
            said.append((max(ranks), at, letter))
        for phrase in ("answer is", "the answer is", "i choose"):
            begin = padded.lower().find(phrase)
            found = padded.find(letter, begin + len(phrase)) if begin >= 0 else -1
            said += [(7, found, letter)] if found >= 0 else []
        if bare.endswith(letter) and not bare[:-1][-1:].isalpha():
            said.append((9, 0, letter))
        if bare.startswith(letter) and not bare[1:][:1].isalpha():
            said.append((10, 0, letter))
    return (sorted(said)[-1][2] if said else "") == right


def slow_relaxed(answer, right):
    def value(text):
        factor = Fraction(1, 100) if text.endswith("%") else 1
        try:
            return Fraction(text.rstrip("%")) * factor
        except ValueError:
            return None

    a, b = value(answer), value(right)
    if a is None or b in (None, 0):
        return answer.lower() == right.lower()
    return abs(a - b) <= abs(b) * Fraction(1, 20)


def slow_anls(answer, right):
    a, b = " ".join(answer.lower().split()), " ".join(right.lower().split())

    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    found = 1 - distance(len(a), len(b)) / max(len(answer), len(right), 1)
    return found if found >= 0.5 else 0.0


def slow_words(text):
    """As the official VQA evaluation reads an answer, mark by mark."""
    digits = {"none": "0", "one": "1", "ten": "10"}
    joined = any(a.isdigit() and b == "," and c.isdigit() for a, b, c in zip(text, text[1:], text[2:], strict=False))
    plain = ""
    for at, mark in enumerate(text):
        if mark == ".":
            plain += mark if text[at + 1 : at + 2].isdigit() else ""
        elif mark in ';/[]"{}()=+\\_-><@`,?!':
            plain += "" if joined or f" {mark}" in text or f"{mark} " in text else " "
        else:
            plain += mark
    words = [digits.get(word, word) for word in plain.lower().split() if word not in ("a", "an", "the")]
    return [{"dont": "don't", "whats": "what's"}.get(word, word) for word in words]


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("exact", lambda a, b: a.strip().removesuffix(".").lower() == b.strip().removesuffix(".").lower()),
        ("gqa", slow_gqa),
        ("contains", slow_contains),
        ("relaxed", slow_relaxed),
        ("anls", slow_anls),
        ("pope", lambda a, b: a.strip().lower() == b.lower()),
    ],
)
def test_scores_are_those_of_a_slow_reference(name, slow):
    tried = pairs(0)
    score = METRICS[name].score
    found = [score(a, [b]) for a, b in tried]
    assert found == pytest.approx([float(slow(a, b)) for a, b in tried])
    assert 0 < sum(found) < len(found)
    several = [(a, (b, a + "?", "Red")) for a, b in tried[:200]]
    assert [score(a, right) for a, right in several] == pytest.approx(
        [max(float(slow(a, b)) for b in r) for a, r in several]
    )


def test_choices_are_those_of_a_slow_reference():
    answers = [*texts(3, 2000)]
    found = [[METRICS["choice"].score(a, [letter]) for letter in "ABCD"] for a in answers]
    assert found == [[float(slow_choice(a, letter)) for letter in "ABCD"] for a in answers]
    assert min(np.sum(found, axis=0)) > 30


def test_soft_accuracy_is_that_of_a_slow_reference():
    """Ten people's answers to ten questions; each of the people is left out once."""
    draw = random.Random(5)
    for answer, *kinds in zip(texts(6), texts(7), texts(8), strict=True):
        people = [draw.choice([answer, *kinds, "cat"]) for _ in range(10)]
        slow = 0.0
        for i in range(10):
            same = sum(slow_words(people[j]) == slow_words(answer) for j in range(10) if j != i)
            slow += min(1.0, same / 3) / 10
        assert METRICS["vqav2"].score(answer, people) == pytest.approx(slow), (answer, people)


def test_numbers_are_read_with_words_around_them():
    tried = {
        "3": 3,
        "There are 3 cars.": 3,
        "1,234.5": 1234.5,
        "-2": -2,
        "−2 °C": -2,
        ".5": 0.5,
        "1e3": 1000,
        "3, or 3": 3,
    }
    assert {text: number(text) for text in tried} == tried
    assert [number(text) for text in ("", "none", "3 or 4", "1,2")] == [None] * 4
    score = metric_named("numeric").score
    assert [score(a, ["40"]) for a in ("40", "40.0 %", "41", "four")] == [1, 1, 0, 0]
    within = metric_named("numeric:0.05").score
    assert [within(a, ["-40"]) for a in ("-38", "-42", "-37.9", "40")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("bleu", "no metric is called 'bleu'; choose one of exact, gqa, contains"),
        ("choice:AB1", "different capital letters"),
        ("choice:AA", "different capital letters"),
        ("numeric:x", "not a share from 0 to 1"),
        ("numeric:2", "not a share from 0 to 1"),
    ],
)
def test_wrong_names_are_refused(name, complaint):
    with pytest.raises(LooklessError, match=complaint):
        metric_named(name)


def samples(*lines):
    return Samples("s", tuple(Sample((), "q", a, f"d.jsonl, line {n}", **more) for n, (a, more) in enumerate(lines, 1)))


@pytest.mark.parametrize(
    ("metric", "answer", "complaint"),
    [
        ("choice", "cat", "the right answer 'cat' is not one of the letters A, B"),
        ("choice:ABCD", "E", "not one of the letters A, B, C, D"),
        ("numeric", "many", "does not hold one number"),
        ("contains", " ", "every answer contains that"),
        ("vqav2", "cat", "it has 1 right answer and this metric needs those of 4 people or more"),
        ("pope", "maybe", "is not yes or no"),
        ("mme", "yes", "MME's score needs an id"),
    ],
)
def test_right_answers_of_no_use_to_a_metric_are_refused(metric, answer, complaint):
    usual = {"choice": "A", "choice:ABCD": "A", "numeric": "3"}.get(metric, "yes")
    more = {"others": ("yes",) * 3} if metric == "vqav2" else {"id": "1", "task": "t"} if metric == "mme" else {}
    with pytest.raises(DataError) as caught:
        scored_by(samples((usual, more), (answer, {})), metric)
    assert str(caught.value).startswith("d.jsonl, line 2: ")
    assert complaint in str(caught.value)


def answers(rows, metric):
    """Of (right, dense, plan, task, id)."""
    score = metric_named(metric).score
    return [
        Answer(
            question="q",
            expected=right,
            dense=dense,
            plan=plan,
            task=task,
            id=name,
            dense_score=score(dense, [right]),
            plan_score=score(plan, [right]),
        )
        for right, dense, plan, task, name in rows
    ]


def test_pope_is_f1_from_precision_and_recall():
    draw = random.Random(2)
    said = [(draw.choice(["yes", "no"]), draw.choice(["yes", "Yes", "no", "maybe"])) for _ in range(300)]
    made = answers([(right, one, one, "t", "1") for right, one in said], "pope")
    counts = Counter((right, one.lower()) for right, one in said)
    precision = counts["yes", "yes"] / (counts["yes", "yes"] + counts["no", "yes"])
    recall = counts["yes", "yes"] / (counts["yes", "yes"] + counts["yes", "no"])  # maybe is not counted
    found = figure(units_of(made, "dense", "pope"))
    assert found.value == pytest.approx(2 * precision * recall / (precision + recall))
    assert found.low < found.value < found.high
    never = answers([("yes", "no", "maybe", "t", "1")] * 3, "pope")
    assert figure(units_of(never, "dense", "pope")).value == figure(units_of(never, "plan", "pope")).value == 0


def test_mme_is_the_sum_over_categories_of_accuracy_and_pairs():
    draw = random.Random(3)
    rows = [
        (right, draw.choice(["Yes, it is", "no"]), draw.choice(["yes", "No.", "so"]), task, str(pair))
        for task, pairs in (("count", 20), ("OCR", 7))
        for pair in range(pairs)
        for right in ("Yes", "No")
    ]
    draw.shuffle(rows)
    made = answers(rows, "mme")
    for who, column in (("dense", 1), ("plan", 2)):
        total = 0.0
        for task in ("count", "OCR"):
            right = Counter()
            for row in rows:
                yes = row[column].lower().startswith("yes")
                no = row[column].lower().startswith("no")
                right[row[4]] += (row[3] == task) * ((row[0] == "Yes" and yes) or (row[0] == "No" and no))
            of_task = [right[name] for name in {row[4] for row in rows if row[3] == task}]
            total += 100 * sum(of_task) / (2 * len(of_task)) + 100 * of_task.count(2) / len(of_task)
        found = figure(units_of(made, who, "mme"))
        assert found.value == pytest.approx(total)
        assert found.low < total < found.high


def test_mme_leaves_out_half_a_pair_and_says_so():
    whole = [("yes", {"id": "1", "task": "t"}), ("no", {"id": "1", "task": "t"})]
    with pytest.warns(UserWarning, match="1 of 3 questions of s are left out"):
        assert len(scored_by(samples(*whole, ("yes", {"id": "2", "task": "t"})), "mme")) == 2
    with pytest.raises(DataError, match="line 3: a third question has the id '1' of t"):
        scored_by(samples(*whole, whole[0]), "mme")
    with pytest.raises(DataError, match="no two questions of s share a task and an id"):
        scored_by(samples(whole[0]), "mme")


def test_intervals_are_those_of_scipy():
    """Its percentile bootstrap, with the same generator."""
    rng = np.random.default_rng(7)
    dense = (rng.random(150) < 0.8).astype(float)
    plan = dense * (rng.random(150) < 0.9) + 0.0
    settings = {"n_resamples": 2000, "method": "percentile", "vectorized": True}

    def theirs(columns, statistic):
        found = stats.bootstrap(columns, statistic, paired=len(columns) > 1, rng=np.random.default_rng(0), **settings)
        return found.confidence_interval.low, found.confidence_interval.high

    def mean(v, axis=-1):
        return v.mean(axis=axis)

    def ratio(p, d, axis=-1):
        return p.mean(axis=axis) / d.mean(axis=axis)

    one, two, three = mean_estimate(dense), retention_estimate(plan, dense), paired_difference(plan, dense)
    assert (one.value, two.value) == pytest.approx((dense.mean(), plan.mean() / dense.mean()))
    assert (one.low, one.high) == pytest.approx(theirs((dense,), mean))
    assert (two.low, two.high) == pytest.approx(theirs((plan, dense), ratio))
    assert (three.low, three.high) == pytest.approx(theirs((plan - dense,), mean))


def test_the_mean_of_retentions_is_not_the_retention_of_the_mean():
    """One large task that keeps all, and a small one that keeps half."""
    dense = np.array([1.0] * 90 + [1.0] * 8 + [0.0] * 2)
    plan = np.array([1.0] * 90 + [1.0] * 4 + [0.0] * 6)
    tasks = ["large"] * 90 + ["small"] * 10
    pooled = retained(Units.plain(plan, tasks), Units.plain(dense, tasks))
    mean = mean_retained(Units.plain(plan, tasks), Units.plain(dense, tasks))
    assert (pooled.value, mean.value) == pytest.approx((94 / 98, (1 + 0.5) / 2))
    rng, draws = np.random.default_rng(1), []
    for _ in range(4000):  # by hand: a task at a time
        ratios = []
        for questions in (np.arange(90), np.arange(90, 100)):
            drawn = rng.choice(questions, len(questions))
            ratios.append(plan[drawn].sum() / dense[drawn].sum())
        draws.append(np.mean(ratios))
    assert (mean.low, mean.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.02)
    nothing = np.concatenate([dense[:90], np.zeros(10)])
    assert mean_retained(Units.plain(plan, tasks), Units.plain(nothing, tasks)) is None
    assert retained(Units.plain(plan, tasks), Units.plain(np.zeros(100), tasks)) is None


def test_answers_of_an_older_library_are_scored_by_exact_match():
    old = {"question": "q", "expected": "Red.", "dense": "red", "plan": "blue"}
    assert (Answer.model_validate(old).dense_score, Answer.model_validate(old).plan_score) == (1.0, 0.0)
    assert Answer.model_validate({**old, "plan": None}).plan_score is None
    new = Answer.model_validate({**old, "dense_score": 0.3, "plan_score": 0.2})
    assert Answer.model_validate_json(new.model_dump_json()) == new
    assert normal("Red.") == "red"
