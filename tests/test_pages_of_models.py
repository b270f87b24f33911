"""What only a model can tell a page: kept tokens on the pictures, other methods' answers, update sizes, attention."""

from __future__ import annotations

import json
import re

import pytest

from helpers.cli import fails, run
from helpers.pages import GEOMETRY, LEFT, MODEL, OTHER, evaluation, parsed, run_folder, scores, told
from lookless import Keep, Plan, Scores, Skip, files, flops, load_data, load_model, reference
from lookless.calibration.kept_tokens import kept_tokens
from lookless.pages import measuring, page
from lookless.pages.material import Material
from lookless.pages.measuring import plans_of_methods, write_whole_page
from lookless.pages.reading import read


def section(tree, name):
    return tree.one("section", id=name)


def covered(path: str, columns: int, rows: int, width: float, height: float) -> set[int]:
    """Numbers of the cells, row by row, whose middle lies in one of the rectangles of ``path``."""
    found = set()
    for x1, y1, x2, y2 in (map(float, r) for r in re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H[\d.]+z", path)):
        for cell in range(rows * columns):
            x, y = ((cell % columns + 0.5) / columns * width, (cell // columns + 0.5) / rows * height)
            if x1 < x < x2 and y1 < y < y2:
                found.add(cell)
    return found


def frame(drawing) -> tuple[float, float]:
    return tuple(map(float, drawing.attributes["viewbox"].split()[2:]))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return parsed(page.page(read([told(run_folder(tmp_path_factory.mktemp("run") / "run", chosen=3))])))


def test_kept_tokens_are_drawn_where_they_lie(tree):
    first, cut, tiled = section(tree, "tokens").all("article")
    stages = first.all("figure")
    assert [stage.one("figcaption").text for stage in stages] == [
        "16 visual tokens",
        "from layer 2 on: 8",
        "from layer 3 on: none",
    ]
    width, height = frame(stages[1].one("svg"))
    assert width / height == pytest.approx(300 / 40, rel=1e-3)  # the picture's own shape
    gone = [stage.one("path", class_="gone").attributes["d"] for stage in stages[1:]]
    assert covered(gone[0], 4, 4, width, height) == {*range(16)} - {*LEFT}
    assert covered(gone[1], 4, 4, width, height) == {*range(16)}
    assert "8 of 16 cells" in stages[1].one("svg").attributes["aria-label"]
    assert not stages[0].all("path", class_="gone")
    # the picture is written once, and what is cut off at its sides is veiled from the beginning
    assert [len(article.all("image")) for article in (first, cut, tiled)] == [1, 1, 1]
    name = first.one("image").attributes["id"]
    assert {use.attributes["href"] for use in first.all("use")} == {f"#{name}"}
    wide, high = frame(cut.all("svg")[1])
    gone = cut.all("figure")[1].one("path", class_="gone").attributes["d"]
    assert covered(gone, 20, 4, wide, high) == {  # cells are a fifth of the width, between 0.4 and 0.6
        20 * row + 8 + column for row in range(4) for column in range(4) if 4 * row + column not in LEFT
    }
    outer, inner = cut.all("path", class_="unseen")[0].attributes["d"].split("z")[:2]
    assert outer == f"M0 0H{wide:.4g}V{high:.4g}H0"
    assert float(re.match(r"M([\d.]+)", inner)[1]) == pytest.approx(0.4 * wide, rel=1e-3)
    # an overview and tiles are two drawings; a row of tiles is four tokens and a newline, which is no cell
    overview, tiles = tiled.all("figure")[1].all("svg")
    assert covered(overview.one("path", class_="gone").attributes["d"], 4, 4, *frame(overview)) == {*range(16)} - {
        *LEFT
    }
    assert covered(tiles.one("path", class_="gone").attributes["d"], 4, 2, *frame(tiles)) == {*range(8)} - {1, 4, 7}
    assert "3 of 8 cells" in tiles.attributes["aria-label"]


def test_other_methods_answer_beside_the_plan(tree):
    """Under the plan the first three answers are lost; fastv loses all, the other none."""
    cases = section(tree, "cases")
    rows = {row.one("th").text: [cell.text for cell in row.all("td")] for row in cases.one("tbody").all("tr")}
    # FLOPs kept as the search has them, or else of a prompt of 16 visual and 8 text tokens
    dense, left = (flops.prefill(GEOMETRY, visual=16, text=8, plan=plan) for plan in (None, OTHER.live()))
    assert rows["<b>mine<|b>"][0] == f"{left.total / dense.total:.1%}"
    assert (rows["the plan"][0], rows["fastv"][0]) == ("30.0%", "50.0%")
    # time kept, right, same, lost, gained, wrong to wrong
    assert rows["the plan"][1:] == ["35.0%", "5", "5", "3", "0", "0"]
    assert rows["fastv"][1:] == ["55.0%", "0", "0", "8", "0", "0"]
    assert rows["<b>mine<|b>"][1:] == ["-", "8", "8", "0", "0", "0"]
    articles = cases.all("article")
    kinds = [article.one("p", class_="kind").text for article in articles]
    assert kinds == ["lost: dense right, plan wrong"] * 3 + ["same answer; fastv loses it"] * 5
    replies = {d.one("dt").text: d.one("dd").text for d in articles[0].all("div", class_="other")}
    assert replies["fastv"] == "wrong"
    assert [len(article.all("img")) for article in articles] == [1] * 8
    assert not tree.all("b")


def test_data_without_labels_have_answers_that_stay_or_change(tmp_path):
    """And none that is lost or wrong."""
    folder = told(run_folder(tmp_path / "run", chosen=3))
    for path in (folder / "points" / "3" / "mine.json", *folder.glob("methods/*/mine.json")):
        content = json.loads(path.read_text())
        content["answers"] = [{**answer, "expected": ""} for answer in content["answers"]]
        path.write_text(json.dumps(content))
    cases = section(parsed(page.page(read([folder]))), "cases")
    assert "8 questions: 5 same, 3 changed." in cases.text
    heads = [head.text for head in cases.one("thead").all("th")]
    assert heads == ["method", "FLOPs kept", "time kept", "same", "changed"]
    rows = {row.one("th").text: [cell.text for cell in row.all("td")][2:] for row in cases.one("tbody").all("tr")}
    assert rows == {"the plan": ["5", "3"], "fastv": ["0", "8"], "<b>mine<|b>": ["8", "0"]}
    assert [a.one("p", class_="kind").text for a in cases.all("article")][:3] == ["another answer"] * 3
    assert "expected" not in cases.text


def test_without_a_certified_plan_the_mildest_is_shown(tmp_path):
    tree = parsed(page.page(read([run_folder(tmp_path / "run", chosen=None)])))
    assert "differs under point 0, and some" in section(tree, "cases").text
    assert "point 0 keeps every visual token" in section(tree, "tokens").text
    assert tree.one("dl", class_="headline").all("dd")[3].text.startswith("changes nothing")


def test_methods_at_the_price_of_the_plan():
    """Of each method the dearest plan within the price, by a search through all counts of its own."""
    named = {
        "visual_information_gain": scores("mine", "visual_information_gain"),
        "freeze_effect": scores("mine", "freeze_effect"),
    }
    plan = Plan.full(GEOMETRY).at([1, 2, 3], attention=Skip(), ffn=Skip())
    material = Material("mine", scores={"mine": named}, examined=plan)
    found = dict(plans_of_methods(material))
    limit = material.share(plan)
    assert {"shortv", "vtw", "fastv", "divprune"} <= {*found}
    assert all(material.share(one) <= limit + measuring.SLACK for one in found.values())
    shares = [material.share(Plan.full(GEOMETRY).at([layer], keep=Keep(0))) for layer in range(4)]
    assert material.share(found["vtw"]) == max(share for share in shares if share <= limit + measuring.SLACK)
    assert plans_of_methods(Material("mine", scores={"mine": named}, examined=Plan.full(GEOMETRY))) == []
    cheap = Plan.full(GEOMETRY).at([0], keep=Keep(0))
    assert "v-skip" not in dict(plans_of_methods(Material("mine", scores={"mine": named}, examined=cheap)))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's file, the scores of one measure, a plan that drops tokens, and the answers of two plans."""
    folder = tmp_path_factory.mktemp("own")
    lines = []
    for i in range(6):
        image, question, answer = reference.question("chart", "test", i)
        image.resize((120, 80) if i % 2 else image.size).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "question": question, "answer": answer}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    data = folder / "mine.jsonl"
    assert run("calibrate", "reference", "--data", data, "--samples", 1, "--out", folder / "scores.json").exit_code == 0
    geometry = Scores.load(folder / "scores.json").geometry
    plan = Plan.full(geometry).at([2], keep=Keep(0.5, rank="last_query_attention")).at([8], keep=Keep(0))
    plan.save_pretrained(folder / "plan")
    done = run("eval", "reference", "--data", data, "--plan", folder / "plan", "--json")
    assert done.exit_code == 0
    (folder / "answers.json").write_text(done.stdout)
    other = Plan.full(geometry).at([3], attention=Skip())
    other.save_pretrained(folder / "other")
    found = evaluation("mine.jsonl", load_data(str(data)), ["never"] * 6)
    named = found.model_copy(update={"model": "reference", "plan_hash": other.hash})
    files.write_text(folder / "by hand.json", files.dump(named))
    return folder


def test_a_users_own_model_and_data_get_every_figure(own):
    """From what `calibrate` and `eval` leave."""
    given = [own / name for name in ("by hand.json", "scores.json", "answers.json", "plan", "other")]
    done = run("report", *given, "--data", own / "mine.jsonl", "--samples", 2, "--out", own / "page.html")
    assert done.exit_code == 0, done.output
    tree = parsed((own / "page.html").read_text(encoding="utf-8"))
    missing = {s.attributes["id"] for s in tree.all("section") if s.all("p", class_="missing")}
    assert missing == {"front", "certificate"}  # there was no search
    beads = [bead.text for bead in section(tree, "silence").one("svg").all("title")]
    assert len(beads) == 24
    assert beads[0].startswith("layer 0, attention: update ")
    assert [f.one("figcaption").text for f in section(tree, "attention").all("figure")] == [
        "From text to the image",
        "Like the layer before",
    ]
    table = section(tree, "cases").one("tbody").all("tr")
    assert [row.one("th").text for row in table] == ["the plan", "by hand"]  # by its hash, not by the order given
    assert "-" not in [row.all("td")[0].text for row in table]

    loaded, samples = load_model("reference"), load_data(str(own / "mine.jsonl"))
    kept = {one.sample_hash: one for one in kept_tokens(loaded, samples, Plan.from_pretrained(own / "plan"))}
    articles = section(tree, "tokens").all("article")
    assert len(articles) == 2
    for article in articles:
        asked = [kept[sample.hash] for sample in samples if sample.question == article.one("h4").text]
        stages = article.all("figure")
        assert [s.one("figcaption").text for s in stages] == [
            "144 visual tokens",
            "from layer 2 on: 72",
            "from layer 8 on: none",
        ]
        drawing = stages[1].one("svg")
        dropped = covered(drawing.one("path", class_="gone").attributes["d"], 12, 12, *frame(drawing))
        assert dropped in [{*range(144)} - {*one.stages[0].kept} for one in asked]


def test_refusals_of_files_side_by_side(own, tmp_path):
    out = ("--out", tmp_path / "page.html")
    files_ = [own / "answers.json", own / "by hand.json"]
    said = fails("report", *files_, own / "by hand.json", *out)
    assert "by hand.json is a second evaluation of by hand on mine.jsonl" in said
    assert "is a second plan, and none of these files has its answers" in fails(
        "report", own / "plan", own / "other", *out
    )
    dense = json.loads((own / "by hand.json").read_text())
    dense["answers"] = [{**answer, "plan": None} for answer in dense["answers"]]
    (tmp_path / "dense.json").write_text(json.dumps(dense))
    assert "has no answers under a plan to questions" in fails("report", *files_, tmp_path / "dense.json", *out)
    assert not (tmp_path / "page.html").exists()


def test_a_run_has_a_page_even_if_its_model_cannot_tell(tmp_path, monkeypatch):
    """And says what is missing, and the command."""
    folder, said = run_folder(tmp_path / "run"), []

    def out_of_memory(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(measuring, "attention_profile", out_of_memory)
    write_whole_page(folder, load_model("reference"), progress=False, log=said.append)
    assert MODEL in parsed((folder / "report.html").read_text(encoding="utf-8")).one("h1").text
    assert "not whole (CUDA out of memory" in said[-1]
    assert said[-1].endswith(f"lookless report {folder} --samples 4")

    def broken(*_, **__):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(measuring, "attention_profile", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        write_whole_page(folder, load_model("reference"), progress=False)
