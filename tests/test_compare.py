"""Two results on the same questions: McNemar's exact test by hand, Holm's steps by enumeration, the command."""

from __future__ import annotations

import itertools
import math

import pytest

from helpers.cli import fails, run
from lookless import Evaluation, LooklessError
from lookless.certification import compare, holm
from lookless.evaluation import Answer, Estimate


def result(right, task="chart", plan=True):
    answers = tuple(
        Answer(
            question=str(i), expected="x", dense="x" if one and not plan else "z", plan="xz"[not one] if plan else None
        )
        for i, one in enumerate(right)
    )
    plain = Estimate(value=1, low=1, high=1)
    return Evaluation(data=task, model="tiny", samples=len(answers), accuracy_dense=plain, answers=answers)


def test_mcnemar_counts_what_one_alone_has_right():
    a, b = [1] * 20 + [1] * 9 + [0] * 2 + [0] * 5, [1] * 20 + [0] * 9 + [1] * 2 + [0] * 5
    [found] = compare([result(a)], [result(b, plan=False)])
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert (found.n, found.right, found.other_right, found.only, found.only_other) == (36, 29, 22, 9, 2)
    assert found.p_value == found.adjusted == pytest.approx(by_hand)
    [same] = compare([result(a)], [result(a)])
    assert same.p_value == 1.0


def test_holm_is_the_closure_of_bonferroni():
    """A hypothesis is rejected where every set of hypotheses that it is in is, by Bonferroni."""
    p = [0.011, 0.04, 0.02, 0.9]
    sets = [some for size in range(1, 5) for some in itertools.combinations(range(4), size)]
    closed = [max(min(1, len(some) * min(p[k] for k in some)) for some in sets if i in some) for i in range(4)]
    assert holm(p) == pytest.approx(closed)


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
    one = tmp_path / "a" / "chart.json"
    assert '"only": 9' in run("compare", one, tmp_path / "b" / "chart.json", "--json").stdout
    assert "results of chart, text and" in fails("compare", tmp_path / "a", one)
    assert "not to the same 10 samples" in fails("compare", one, _shorter(tmp_path))
    assert "alpha of 2.0" in fails("compare", one, one, "--alpha", 2)
    assert "does not exist" in fails("compare", one, tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    assert "has no JSON file" in fails("compare", tmp_path / "empty", one)
    with pytest.raises(LooklessError, match="1 tasks cannot be compared with 0"):
        compare([result([1])], [])


def _shorter(folder):
    path = folder / "shorter.json"
    path.write_text(result([1] * 9).model_dump_json())
    return path
