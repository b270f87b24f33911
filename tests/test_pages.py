"""`lookless report`: what the page says is what the files say, and nothing in the files can harm its reader."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
from itertools import pairwise

import pytest
from PIL import Image

from helpers.cli import fails, run
from helpers.pages import GEOMETRY, HOSTILE, MODEL, evaluation, parsed, plans, run_folder, scores
from helpers.scores import scored
from lookless import Plan, Skip, files, load_data
from lookless.pages import cases, page, pictures
from lookless.pages.material import Material
from lookless.pages.pictures import Album
from lookless.pages.reading import read

SECTIONS = ("plan", "front", "certificate", "cases", "tokens", "profile", "silence", "attention", "about")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("run") / "my run")


@pytest.fixture(scope="module")
def html(folder):
    return page.page(read([folder]))


@pytest.fixture(scope="module")
def tree(html):
    return parsed(html)


def section(tree, name):
    return tree.one("section", id=name)


def test_the_page_is_complete_in_itself(tree, html):
    """Nothing is loaded, nothing but our script can run, and the policy says so: hashes are computed here anew."""
    for element in tree.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.tag, name)
            if name in ("src", "href", "data", "action", "xlink:href"):
                assert value.startswith(("data:image/", "#")), value
    assert {e.tag for e in tree.walk()}.isdisjoint({"link", "iframe", "object", "embed", "base", "form"})
    [script], [style] = tree.all("script"), tree.all("style")
    policy = next(m.attributes["content"] for m in tree.all("meta") if "http-equiv" in m.attributes)
    for kind, element in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "@import" not in style.text
    assert "url(" not in style.text
    assert html.startswith("<!doctype html>\n<html lang=")


def test_what_a_user_wrote_is_text(tree):
    """Every question and answer, to the letter but for what cannot be seen; nowhere an element of theirs."""
    unseen = re.compile("[\x00\x1b\u202e]")
    shown = section(tree, "cases").all("h4")
    expected = {f"{i}: {unseen.sub(chr(0xFFFD), words)}" for i, words in enumerate(HOSTILE)}
    # one answer differs under the plan, three that stay are examples
    assert {h.text for h in shown} == {q for q in expected if q[0] in "0123"}
    alts = [image.attributes["alt"] for image in section(tree, "cases").all("img")]
    assert [alt.split("question: ")[1] for alt in alts] == [h.text for h in shown]
    assert tree.one("head").one("title").text == tree.one("h1").text == MODEL
    assert not tree.all("b")
    assert not tree.all("i")


def test_sections_and_accessibility(tree):
    assert [s.attributes["id"] for s in tree.all("section")] == [*SECTIONS]
    assert [a.attributes["href"] for a in tree.one("nav").all("a")] == [f"#{name}" for name in SECTIONS]
    levels = [int(e.tag[1]) for e in tree.walk() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [e.attributes["id"] for e in tree.walk() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for drawing in tree.all("svg"):
        assert drawing.attributes["role"] == "img"
        assert len(drawing.attributes["aria-label"]) > 20
    assert all(image.attributes["alt"] for image in tree.all("img"))
    slider = tree.one("input")
    assert tree.one("label").attributes["for"] == slider.attributes["id"]
    assert all(head.attributes.get("scope") for head in tree.all("th"))


def test_the_headline(tree, folder):
    said = {div.one("dt").text: div.one("dd").text for div in tree.one("dl", class_="headline").all("div")}
    assert said["Model"] == f"{MODEL}: llava, 4 layers of width 8"
    assert said["Data"] == "mine: 8 held-out questions"
    assert said["Wish"] == "as few milliseconds as possible, and 99.0% of the right answers kept, with 95% confidence"
    assert said[
        "The plan"
    ] == "runs 70.0% of the prefill's FLOPs; takes 75.0% of its time; keeps 87.5% of the right " + ("answers on mine")
    assert said["Certified"].startswith("at most 2.00% of the questions that the dense model answers right")
    assert tree.one("p", class_="serve").one("code").text == f"lookless serve '{MODEL}' --plan '{folder / 'plan'}'"


def drawn(element) -> dict[str, int]:
    """Boxes of a map by shade: full ones are one path."""
    counts = {shade: len(element.all("rect", class_=f"cell {shade}")) for shade in ("part", "other", "skip")}
    counts["full"] = sum(p.attributes["d"].count("z") for p in element.all("path", class_="cell full"))
    return counts


def counted(plan: Plan, columns) -> dict[str, int]:
    """The same of the fractions of visual tokens that are alive, and of a plan's cells where any is."""
    counts = {"full": 0, "part": 0, "other": 0, "skip": 0}
    for row, alive in zip(plan.layers, plan.alive(100), strict=True):
        for column in columns:
            whole = alive == 100 if column == "keep" else getattr(row, column).is_full
            none = alive == 0 or (column != "keep" and getattr(row, column) == Skip())
            counts["skip" if none else "full" if whole else "part"] += 1
    return counts


def test_maps_show_the_plans(tree):
    assert drawn(section(tree, "plan").one("svg")) == counted(plans()[1], ("attention", "ffn"))
    titles = [t.text for t in section(tree, "plan").one("svg").all("title")]
    assert titles == ["layer 2, attention: skip", "layer 3, attention: skip", "layer 3, FFN: skip"]
    columns = ("keep", "attention", "ffn")
    articles = tree.all("article", class_="point")
    assert [drawn(a.one("svg")) for a in articles] == [counted(p, columns) for p in plans()]
    budget = [f for f in section(tree, "front").all("figure") if "visual tokens" in f.one("figcaption").text]
    for column, figure in zip(columns, budget, strict=True):
        assert [drawn(g) for g in figure.all("g", class_="choice")] == [counted(p, (column,)) for p in plans()]


def test_every_point_has_its_numbers(tree):
    articles = tree.all("article", class_="point")
    assert [a.attributes["data-place"] for a in articles] == ["0", "1", "2", "3"]
    facts = [{d.one("dt").text: d.one("dd").text for d in a.one("dl").all("div")} for a in articles]
    assert [f["FLOPs kept"] for f in facts] == ["90.0%", "70.0%", "50.0%", "30.0%"]
    assert [f["certificate"] for f in facts] == ["certified", "certified", "not enough data", "not tested"]
    rows = [[cell.text for cell in a.one("tbody").all("tr")[0].all("td")] for a in articles]
    assert [row[0] for row in rows] == [
        "100.0%90.0 to 100.0%",
        "87.5%77.5 to 87.5%",
        "75.0%65.0 to 75.0%",
        "62.5%52.5 to 62.5%",
    ]
    assert [row[2] for row in rows] == [f"accuracy 100% → {share}%" for share in (100, 88, 75, 62)]
    other = articles[0].one("tbody").all("tr")[1]
    assert [c.text for c in other.all("th") + other.all("td")] == ["<i>other<b>", "-", "-", "-", "-", "0.0002"]
    assert tree.one("input").attributes["value"] == "1"


def test_the_certificate_in_rows(tree):
    rows = [[cell.text for cell in row.all("td")] for row in section(tree, "certificate").one("tbody").all("tr")]
    assert rows[0] == ["mine", "passed", "0 of 390", "0.00%", "1.00%", "0.02"]
    failed = "not enough data: about 777 questions would do"
    assert rows[2] == ["mine", failed, "2 of 390", "0.51%", "3.00%", "0.06"]
    assert "1 more were not tested" in section(tree, "certificate").text


def test_profile_and_silence(tree):
    """The line of a measure passes the means: places are read back through the axis of the ticks."""
    figure = section(tree, "profile").all("figure")[0]
    line = figure.one("path", class_="line ink-a").attributes["d"]
    heights = [float(point.split()[1]) for point in line[1:].split("L")]
    steps = [b - a for a, b in pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.02)  # means are a decade apart
    ticks = {t.text: float(t.attributes["y"]) - 3.5 for t in figure.all("text", text_anchor="end") if "1" in t.text}
    assert ticks["0.01"] - ticks["0.1"] == pytest.approx(steps[0], abs=0.02)
    threshold = figure.one("path", class_="threshold ink-a").attributes["d"]
    assert float(threshold.split()[1].split("L")[0]) == pytest.approx(heights[2])  # layer 2 is skipped, 1 is not
    beads = section(tree, "silence").one("svg").all("title")
    assert beads[0].text == "layer 0, attention: update 0.6, effect 0.2"


FILES = ["plan", "chain.json", "front.json", "points", "scores", "certificate.json", "attention.json"]


@pytest.mark.parametrize(
    ("gone", "empty"),
    [
        (["plan"], {"plan"}),
        (["chain.json"], {"cases"}),
        (["chain.json", "front.json"], {"front", "cases"}),
        (["points"], {"cases"}),
        (["scores"], {"profile", "silence"}),
        (["certificate.json"], {"certificate"}),
        (["attention.json"], {"attention"}),
        (
            ["plan", "chain.json", "front.json", "points", "scores", "certificate.json", "attention.json"],
            {*SECTIONS} - {"about"},
        ),
    ],
    ids=lambda value: ",".join(sorted(value)),
)
def test_any_file_may_be_missing(folder, tmp_path, gone, empty):
    """Its section names the command that makes it, and the others stay."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in gone:
        (shutil.rmtree if (copy / name).is_dir() else type(copy).unlink)(copy / name)
    tree = parsed(page.page(read([copy])))
    without = {
        s.attributes["id"]: [p.one("code").text for p in s.all("p", class_="missing")] for s in tree.all("section")
    }
    assert {name for name, commands in without.items() if commands} == empty
    assert all(command.startswith("lookless ") for commands in without.values() for command in commands)


def test_the_command_writes_the_page(folder, tmp_path, html):
    done = run("report", folder, "--out", tmp_path / "deep" / "page.html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8") == html  # the same files, the same bytes
    assert run("report", folder).exit_code == 0
    assert (folder / "report.html").read_text(encoding="utf-8") == html


def test_single_files(folder, tmp_path):
    samples = load_data(str(folder / "mine.jsonl"))
    files.write_text(tmp_path / "answers.json", files.dump(evaluation("mine.jsonl", samples, ["wrong"] * 8)))
    scores("mine.jsonl", "visual_information_gain").save(tmp_path / "scores.json")
    out = tmp_path / "page.html"
    done = run(
        *("report", tmp_path / "scores.json", tmp_path / "answers.json", folder / "plan", "--out", out),
        *("--data", f"mine.jsonl={folder / 'mine.jsonl'}"),
    )
    assert done.exit_code == 0, done.output
    tree = parsed(out.read_text(encoding="utf-8"))
    assert len(section(tree, "cases").all("img")) == 8
    assert len(section(tree, "profile").all("figure")) == 1
    kept = tree.one("dl", class_="headline").all("dd")[3].text
    assert re.match(r"runs \d\d\.\d% of the prefill's FLOPs; keeps 0.0% of the right answers on mine.jsonl", kept)
    shown = run("report", tmp_path / "answers.json", "--out", out, "--overwrite")
    assert shown.exit_code == 0
    assert "No images: mine.jsonl cannot be read as data" in out.read_text(encoding="utf-8")


def test_refusals(folder, tmp_path):
    """One sentence each, and no page."""
    out = ("--out", tmp_path / "page.html")
    assert "has no run.json" in fails("report", tmp_path, *out)
    assert "No such file" in fails("report", tmp_path / "nothing.json", *out)
    (tmp_path / "odd.json").write_text('{"a": 1}')
    assert "holds nothing that a page shows" in fails("report", tmp_path / "odd.json", *out)
    mine, other = tmp_path / "mine.json", tmp_path / "other.json"
    scores("mine", "visual_information_gain").save(mine)
    scored(1.0, 2.0, data="other").save(other)
    assert "different architectures" in fails("report", mine, other, *out)
    assert "is a second scores visual_information_gain of mine" in fails("report", mine, mine, *out)
    said = fails("report", folder, "--data", "x=y", *out)
    assert "--data x=y is of no task here: give TASK=DATA; tasks are mine, <i>other<b>." in said
    assert "is of no task here" in fails("report", folder, "--data", "other.jsonl", *out)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "front.json").write_text('{"candidates": [')
    assert "cannot be read as a front" in fails("report", broken, *out)
    assert "is no evaluation: beside a run's folder" in fails("report", folder, mine, *out)
    strange = tmp_path / "strange.json"
    far = load_data("reference:chart", limit=2)
    files.write_text(strange, files.dump(evaluation("far", far, ["a", "b"])))
    assert "has no answers under a plan to questions that the plan of" in fails("report", folder, strange, *out)
    assert "none of these files names one: give --model" in fails("report", folder / "plan", "--samples", 1, *out)
    assert not (tmp_path / "page.html").exists()


def test_every_changed_answer_is_listed_and_images_are_bounded(folder, monkeypatch):
    """Kinds by a slow rule of its own; bytes and pictures stay within the bounds, text does not suffer."""
    samples = load_data(str(folder / "mine.jsonl"))
    found = evaluation("mine", samples, ["x", samples.items[1].answer.upper() + ".", *(["y"] * 6)])
    material, album = Material("mine", evaluations={"mine": found}), Album({"mine": str(folder / "mine.jsonl")})
    [shown] = cases.cases_of(material, album)
    assert shown.counts == {"lost": 7, "gained": 0, "changed": 0, "same": 1}
    assert [c.kind for c in shown.shown] == ["lost"] * 7 + ["same"]
    for case, image in ((c, uri) for c in shown.shown for uri in c.images):
        head, body = image.split(",")
        pixels = Image.open(io.BytesIO(base64.b64decode(body)))
        assert head == f"data:image/{pixels.format.lower()};base64", case
        assert max(pixels.size) == pictures.SIDE
    monkeypatch.setattr(cases, "MOST_IMAGES", 3)
    [few] = cases.cases_of(material, album)
    assert sum(bool(c.images) for c in few.shown) == 3
    assert len(few.shown) == 8
    assert few.note == "5 images are left out to keep the page small."
    monkeypatch.setattr(cases, "ALL_BYTES", 1)
    assert not any(c.images for c in cases.cases_of(material, album)[0].shown)


def test_an_image_of_noise_becomes_a_jpeg_and_a_huge_one_none(monkeypatch):
    noise = Image.effect_noise((600, 400), 90).convert("RGB")
    assert pictures.uri(noise).startswith("data:image/jpeg;base64,")
    monkeypatch.setattr(pictures, "MOST_BYTES", 100)
    assert pictures.uri(noise) is None


def test_a_plan_for_another_model_is_refused(folder, tmp_path):
    Plan.full(7).save_pretrained(tmp_path / "plan")
    said = fails(
        "report", folder / "scores" / "mine.ffn_effect.json", tmp_path / "plan", "--out", tmp_path / "page.html"
    )
    assert f"the plan has 7 layers and the model {GEOMETRY.layers}" in said
