"""The plan: a frozen table that composes, prints, saves and refuses."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from lookless import Full, Geometry, LayerPlan, Plan, Skip
from lookless.errors import PlanError, PlanMismatchError
from lookless.plan import FILE_NAME

SEVEN = Geometry.preset("LLaVA-1.5-7B")


def test_at_sets_cells_and_nothing_else():
    plan = Plan.full(4).at([1, 3], attention=Skip()).at([3], ffn=Skip())
    assert [row.attention for row in plan.layers] == [Full(), Skip(), Full(), Skip()]
    assert [row.ffn for row in plan.layers] == [Full(), Full(), Full(), Skip()]
    assert plan.skipped("attention") == (1, 3)
    assert Plan.full(4).is_full
    assert not plan.is_full


def test_at_refuses():
    with pytest.raises(PlanError, match=r"layer 4 is not in a plan of 4 layers \(0 to 3\)"):
        Plan.full(4).at([4], attention=Skip())
    with pytest.raises(PlanError, match="layer -1"):
        Plan.full(4).at([-1], attention=Skip())
    with pytest.raises(PlanError, match="no column 'attn'"):
        Plan.full(4).at([0], attn=Skip())


def test_plans_are_frozen():
    with pytest.raises(ValidationError):
        Plan.full(3).layers = ()
    with pytest.raises(ValidationError):
        LayerPlan().ffn = Skip()


def test_or_joins_and_names_the_clash():
    a = Plan.full(3).at([0], attention=Skip()).made_by(method="a")
    b = Plan.full(3).at([0, 1], ffn=Skip()).made_by(method="b")
    joined = a | b
    assert joined.layers == (LayerPlan(attention=Skip(), ffn=Skip()), LayerPlan(ffn=Skip()), LayerPlan())
    assert joined.provenance.method == "a | b"
    with pytest.raises(PlanError, match=r"both plans set ffn of layer 1"):
        b | Plan.full(3).at([1], ffn=Skip())
    with pytest.raises(PlanMismatchError, match="3 layers and the model has 4"):
        a | Plan.full(4)


def test_rows():
    rows = Plan.full(2).at([0], attention=Skip()).at([1], ffn=Skip()).rows(visual=10, text=3)
    assert rows == ({"query": 3, "key": 13, "ffn": 13}, {"query": 13, "key": 13, "ffn": 3})


def test_save_and_load_are_the_identity(tmp_path):
    plan = Plan.full(SEVEN).at([3, 4], attention=Skip()).made_by(method="v-skip", knobs={"layers": 2}, samples=20)
    path = plan.save_pretrained(tmp_path / "new" / "folder")
    assert path.name == FILE_NAME
    assert Plan.from_pretrained(path.parent) == plan
    assert Plan.from_pretrained(path) == plan
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert [p.name for p in path.parent.iterdir()] == [FILE_NAME]  # nothing temporary is left


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"schema_version": 99}, "schema version 99 and this lookless reads up to 2"),
        ({"layers": []}, "layers"),
        ({"layers": [{"attention": {"kind": "squint"}}]}, "squint"),
        ({"layers": [{"attention": {"kind": "skip", "size": 3}}]}, "unknown key 'layers.0.attention.skip.size'"),
        ({"layers": 7}, "layers"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path, change, complaint):
    path = Plan.full(2).save_pretrained(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(PlanError) as caught:
        Plan.from_pretrained(tmp_path)
    message = str(caught.value)
    assert complaint in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01"])
def test_what_is_no_plan_is_refused(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(PlanError, match="cannot be read as a plan"):
        Plan.from_pretrained(tmp_path)


def test_missing_plans(tmp_path):
    with pytest.raises(PlanError, match="does not exist"):
        Plan.from_pretrained(tmp_path)
    with pytest.raises(PlanError, match="no plan at 'someone/plan'"):
        Plan.from_pretrained("someone/plan")


def test_a_failed_save_leaves_the_old_plan(tmp_path, monkeypatch):
    Plan.full(3).save_pretrained(tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Plan.full(4).save_pretrained(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_check():
    Plan.full(SEVEN).check(SEVEN)
    Plan.full(32).check(SEVEN)
    with pytest.raises(PlanMismatchError, match="32 layers and the model has 40"):
        Plan.full(SEVEN).check(Geometry.preset("LLaVA-1.5-13B"))
    with pytest.raises(PlanMismatchError, match="llava_next"):
        Plan.full(SEVEN).check(Geometry.preset("LLaVA-NeXT-7B"))


def test_prints_as_a_table():
    assert str(Plan.full(2).at([1], ffn=Skip())).splitlines() == [
        "layer  attention  ffn",
        "    0  full       full",
        "    1  full       skip",
    ]


def test_push_to_hub_uploads_the_file(monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))

        def upload_file(self, **options):
            calls.append(("upload", options["path_in_repo"], options["path_or_fileobj"]))
            return type("Commit", (), {"commit_url": "there"})()

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    plan = Plan.full(2)
    assert plan.push_to_hub("me/plan", private=True, token="t") == "there"
    assert calls == [
        ("token", "t"),
        ("create", "me/plan", {"private": True, "exist_ok": True}),
        ("upload", FILE_NAME, plan.to_json().encode()),
    ]
