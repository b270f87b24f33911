"""The plan: a frozen table that composes, prints, saves and refuses."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from lookless import Filter, Full, Geometry, Keep, LayerPlan, Neurons, Plan, Sink, Skip, Top, Window
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
        ({"schema_version": 99}, "schema version 99 and this lookless reads up to 4"),
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


def test_a_folder_that_is_here_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "my-run").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lookless.files.download", None)
    with pytest.raises(PlanError, match="my-run is a folder here, and has no plan in it"):
        Plan.from_pretrained("my-run/plan")


def test_a_failed_save_leaves_the_old_plan(tmp_path, monkeypatch):
    Plan.full(3).save_pretrained(tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match=r"disk full.*lookless_plan\.json"):
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


def live_rows(plan):
    """A and F where visual tokens still attend and are transformed in full."""
    layers = plan.live().layers
    marks = (("A", [row.attention for row in layers]), ("F", [row.ffn for row in layers]))
    return ["".join(mark if cell == Full() else "." for cell in cells) for mark, cells in marks]


def test_live_plans_do_no_work_that_nobody_reads():
    full = Plan.full(5)
    assert live_rows(full) == ["AAAA.", "FFFF."]  # the last layer's, in every model
    assert live_rows(full.at([3], keep=Keep(0))) == ["AA.A.", "FF.F."]  # and of the layer before a withdrawal
    assert live_rows(full.at([3, 4], visible=Skip())) == ["AA...", "FF..."]  # a tail in which text reads no image
    assert live_rows(full.at([2], visible=Skip())) == ["AAAA.", "FFFF."]  # what passes through is read later
    some = full.at([4], keep=Keep(0.5, rank="key_norm"))
    assert live_rows(some) == ["AAAA.", "FFFF."]
    assert full.at([1], attention=Top(0)).live().layers[1].attention == Skip()
    assert some.live().live() == some.live()


def test_a_full_plan_runs_as_it_stands():
    """Nothing is touched under it, dead work included; any other plan runs live, one that filters too."""
    full = Plan.full(3)
    assert full.as_run == full != full.live()
    for plan in (full.at([1], attention=Skip()), full.at([1], keep=Filter()), full.live()):
        assert plan.as_run == plan.live()


def test_dead_rows_are_counted_nowhere():
    plan = (
        Plan.full(4)
        .at([1], keep=Keep(0.5, rank="random"))
        .at([2], attention=Skip(), visible=Skip())
        .at([3], keep=Keep(0))
    )
    assert plan.rows(visual=10, text=3) == (
        {"query": 13, "key": 13, "ffn": 13},
        {"query": 8, "key": 8, "ffn": 8},
        {"query": 3, "key": 3, "ffn": 8},
        {"query": 3, "key": 3, "ffn": 3},
    )
    assert plan.rows(visual=10.5, text=3)[1]["query"] == 3 + 5.25  # means over prompts are not rounded
    assert Keep(0.01, rank="random").of(10) == 1  # never none unless none are wanted
    with pytest.raises(PlanError, match="rows are not known beforehand"):
        Plan.full(4).at([2], keep=Filter()).rows(visual=10, text=3)


def test_prefix_cache_safety():
    full = Plan.full(4)
    for safe in (
        full.at([0], attention=Skip(), ffn=Skip()),
        full.at([2], keep=Keep(0)),
        full.at([1], attention=Window(8), ffn=Neurons(0.2)),
        full.at([1], keep=Keep(0.5, rank="key_norm")).at([2], attention=Top(0.1, rank="random")),
    ):
        assert safe.is_prefix_cache_safe
    for unsafe in (
        full.at([1], keep=Keep(0.5, rank="last_query_attention")),
        full.at([1], decode=Top(0.5, rank="value_aware")),
        full.at([1], keep=Filter()),
    ):
        assert not unsafe.is_prefix_cache_safe


def test_every_cell_survives_a_file(tmp_path):
    plan = (
        Plan.full(6)
        .at([0], keep=Keep(count=64, rank="diversity"))
        .at([1], keep=Keep(0.3, rank="text_raters", recycle=0.3), attention=Window(256), ffn=Neurons(0.2, probe=0.05))
        .at([2], attention=Top(0.1, rank="mutual_attention"), decode=Top(count=5, rank="value_aware"))
        .at([3], visible=Sink(), keep=Filter(norm=0.1))
        .at([4], visible=Skip(), decode=Skip())
        .at([5], keep=Keep(0))
    )
    plan.save_pretrained(tmp_path)
    assert Plan.from_pretrained(tmp_path) == plan
    assert "64 tokens by diversity" in str(plan)
    assert str(plan).splitlines()[0].split() == ["layer", "keep", "attention", "ffn", "visible", "decode"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Plan.full(3).at([1], keep=Skip()), r"skip \(Skip\) does not fit column keep"),
        (lambda: Plan.full(3).at([1], ffn=Window(3)), r"window 3 \(Window\) does not fit column ffn"),
    ],
)
def test_cells_in_the_wrong_column(make, complaint):
    with pytest.raises(PlanError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        (lambda: Keep(0.5), "needs a rank, one of last_query_attention"),
        (lambda: Keep(0.5, rank="vibes"), "there is no rank 'vibes'"),
        (lambda: Keep(), "either a ratio or a count"),
        (lambda: Keep(0.5, count=3, rank="random"), "either a ratio or a count"),
        (lambda: Keep(1.5, rank="random"), "less than or equal to 1"),
        (lambda: Keep(0, recycle=0.5), "Keep of no tokens cannot recycle 0.5 of them: give a ratio or count above 0"),
        (lambda: Window(0), "greater than 0"),
        (lambda: Neurons(0.0), "greater than 0"),
    ],
)
def test_cells_that_mean_nothing(cell, complaint):
    with pytest.raises(ValueError, match=complaint):
        cell()


def test_files_of_the_first_schema_are_read(tmp_path):
    old = {"schema_version": 1, "layers": [{"attention": {"kind": "skip"}, "ffn": {"kind": "full"}}]}
    (tmp_path / "lookless_plan.json").write_text(json.dumps(old))
    assert Plan.from_pretrained(tmp_path).layers == Plan.full(1).at([0], attention=Skip()).layers
