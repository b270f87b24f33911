"""Samples that lmms-eval logged: read, paired by doc_id, and refused where they are not of the same questions."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from helpers.cli import fails, run
from lookless import LooklessError
from lookless.certification import ComparisonWarning, compare
from lookless.certification.logged import read_logged

DATE = "20260806_123456"
NOTHING = hashlib.sha256(b"null").hexdigest()  # lmms-eval's doc_hash of every question: at that place it has none


def line(number, scores, **more):
    """As `save_results_samples` of lmms-eval 0.7.3 writes it: without doc and arguments, and everything else flat."""
    return {
        "doc_id": number,
        "target": f"target {number}",
        "filtered_resps": "an answer",
        "token_counts": [None],
        "doc_hash": NOTHING,
        **scores,
        "input": f"prompt {number}",
        **more,
    }


def write(folder, task, lines, date=DATE):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{date}_samples_{task}.jsonl"
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines), encoding="utf-8")
    return path


def numbers(scores, field="exact_match", **more):
    return [line(i, {field: score}, **more) for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "field"),
    [
        # gqa; chartqa, whose splits share the lines; textvqa; mmstar; pope, with five names for one score
        ([{"exact_match": 1.0}, {"exact_match": 0.0}], "exact_match"),
        (
            [
                {"relaxed_overall": True, "relaxed_human_split": True},
                {"relaxed_overall": False, "relaxed_augmented_split": False},
            ],
            "relaxed_overall",
        ),
        ([{"exact_match": i, "submission": {"question_id": i, "answer": "a"}} for i in (1, 0)], "exact_match"),
        (
            [
                {"math": {"question_id": "0", "score": 1}, "average": {"question_id": "0", "score": 1}},
                {"logic": {"question_id": "1", "score": 0}, "average": {"question_id": "1", "score": 0}},
            ],
            "average",
        ),
        (
            [
                {key: {"question_id": n, "score": n} for key in ("pope_accuracy", "pope_precision", "pope_f1_score")}
                for n in (1, 0)
            ],
            "pope_accuracy",
        ),
    ],
)
def test_the_score_of_every_line_is_taken(tmp_path, scores, field):
    path = write(tmp_path, "a_task", [line(7 - i, one) for i, one in enumerate(scores)])
    [(task, found)] = read_logged(path).items()
    assert (task, found.measure) == ("a_task", field)
    assert [*found.scores] == [0, 1]  # by doc_id, and not as the lines are
    assert [one[0] for one in found.questions] == [6, 7]


def test_a_score_must_be_chosen_where_there_are_two(tmp_path):
    two = write(tmp_path, "ai2d", [line(i, {"acc": i % 2, "acc_norm": i % 3 / 2, "f1": [1, 0]}) for i in range(4)])
    with pytest.raises(LooklessError, match=r"has 2 scores that differ: choose one of acc, acc_norm \(--score\)"):
        read_logged(two)
    assert [*read_logged(two, ["acc_norm"])["ai2d"].scores] == [0, 0.5, 1, 0]
    parts = [
        {f"mme_{'perception' if i < 2 else 'cognition'}_score": {"question_id": i // 2, "score": 1}} for i in range(4)
    ]
    mme = write(tmp_path, "mme", [line(i, one) for i, one in enumerate(parts)])
    with pytest.raises(LooklessError, match="has no score on every line: choose one of mme_cognition_score, mme_perc"):
        read_logged(mme)
    found = read_logged(mme, ["mme_cognition_score"], "mme_cognition_score.question_id")["mme"]
    assert [one[0] for one in found.questions] == [2, 3]
    assert found.images == (frozenset({"1"}), frozenset({"1"}))
    with pytest.raises(LooklessError, match=r"no line has a score 'anls'; scores are acc, acc_norm\."):
        read_logged(two, ["anls"])
    mmmu = {"mmmu_acc": {"id": 1, "answer": "A", "parsed_pred": "B"}}
    with pytest.raises(LooklessError, match="choose a task that logs a number for each question"):
        read_logged(write(tmp_path, "mmmu_val", [line(0, mmmu)]))
    with pytest.raises(LooklessError, match=r"has no nothing\.here for doc_id 0: name a field that every line has"):
        read_logged(two, ["acc"], "nothing.here")


def test_a_score_that_is_better_where_lower_is_refused(tmp_path):
    path = write(tmp_path, "count", numbers([3, 0], "mae"))
    results = tmp_path / f"{DATE}_results.json"
    results.write_text('{"higher_is_better": {"count": {"mae": false}}, "results": {"x": NaN}}')
    with pytest.raises(LooklessError, match=r"mae of .* is better where it is lower"):
        read_logged(path)
    results.write_text('{"lmms_eval_version": "0.7.3", "model_name": "a/b"}')
    side = read_logged(path)["count"].side
    assert (side.model, side.versions) == ("a/b", {"lmms-eval": "0.7.3"})
    results.write_text("{")
    with pytest.raises(LooklessError, match=r"_results\.json cannot be read"):
        read_logged(path)


def test_a_folder_of_tasks(tmp_path):
    for run_of, wins in (("stock", 9), ("plan", 0)):
        folder = tmp_path / run_of / "org__model"
        write(folder, "gqa", numbers([1] * wins + [0] * (40 - wins)))
        write(folder, "docvqa_val", numbers([0.9] * 20 + [0.5] * 20, "anls"))
        (folder / f"{DATE}_results.json").write_text('{"lmms_eval_version": "0.7.3"}')
    done = run("compare", tmp_path / "stock", tmp_path / "plan", "--margin", 0.2)
    assert done.exit_code == 0, done.output
    for said in ("anls", "exact_match", "A better", "docvqa_val: a permutation test, as scores are", "betting"):
        assert said in done.stdout
    assert "do not say which questions share an image" in done.stdout
    told = json.loads(run("compare", tmp_path / "stock", tmp_path / "plan", "--json").stdout)
    assert [one["task"] for one in told["tasks"]] == ["docvqa_val", "gqa"]
    assert told["tasks"][0]["a"]["versions"] == {"lmms-eval": "0.7.3"}
    again = write(tmp_path / "stock", "gqa", numbers([1]), "20260807_000000")
    assert "holds two runs of gqa" in fails("compare", tmp_path / "stock", tmp_path / "plan")
    again.unlink()
    file = next((tmp_path / "plan").rglob("*gqa.jsonl"))
    assert "results of docvqa_val, gqa and" in fails("compare", tmp_path / "stock", file)
    assert "holds one run of lmms-eval" in fails("compare", file)


def test_images_are_those_that_the_log_names(tmp_path):
    rng = np.random.default_rng(0)
    for name, share in (("a", 0.8), ("b", 0.7)):
        lines = [
            line(i, {"exact_match": float(rng.random() < share)}, input_media=[f"images/{i // 3}.jpg"])
            for i in range(60)
        ]
        write(tmp_path / name, "pope", lines)
    a, b = (read_logged(tmp_path / name) for name in "ab")
    [found] = compare([*a.values()], [*b.values()], margin=0.3)
    assert (found.images, found.test, found.non_inferiority.test) == (20, "permutation by image", "betting")


def test_other_questions_are_refused(tmp_path):
    def against(lines):
        a, b = (write(tmp_path / name, "gqa", some) for name, some in (("a", numbers([1, 0])), ("b", lines)))
        return compare([read_logged(a)["gqa"]], [read_logged(b)["gqa"]])

    for counts, first, lines in (
        ("2 and 1", 1, numbers([1])),
        ("2 and 2", 1, [line(0, {"exact_match": 1}), line(2, {"exact_match": 1})]),
        ("2 and 2", 1, [line(0, {"exact_match": 1}), line(1, {"exact_match": 1}, target="another")]),
        ("2 and 2", 0, [line(i, {"exact_match": 1}, doc_hash="another") for i in range(2)]),
    ):
        said = rf"do not hold the same questions \({counts}, the first to differ is '{first}'\)"
        with pytest.raises(LooklessError, match=said):
            against(lines)
    with pytest.raises(LooklessError, match=r"is scored by exact_match and .* by acc: name a score that both have"):
        against(numbers([1, 0], "acc"))
    with pytest.warns(ComparisonWarning, match="^2 of 2 prompts of gqa differ in their words"):
        against(numbers([1, 0], input="another"))
    assert against(numbers([1, 0])[::-1])[0].p_value == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no line"),
        ("{", "line 1 cannot be read: it is not JSON"),
        ("[1]", "is no sample of lmms-eval"),
        ('{"question": "a", "answer": "b"}', "it needs doc_id and target"),
        (
            '{"doc_id": 1, "target": "a", "acc": 1}\n\n{"doc_id": 1, "target": "a", "acc": 1}',
            "line 3 has doc_id 1 again",
        ),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, content, said):
    path = tmp_path / "x_samples_t.jsonl"
    path.write_text(content)
    assert said in fails("compare", path, path)


def test_a_missing_log(tmp_path):
    assert "none.jsonl cannot be read (No such file" in fails("compare", tmp_path / "none.jsonl", tmp_path)
