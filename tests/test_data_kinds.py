"""The same samples from every kind of file; what cannot be read is named, and skipped where that is asked for."""

from __future__ import annotations

import csv
import io
import json
import sys
import tracemalloc
from types import SimpleNamespace

import pytest
from PIL import Image

from helpers.cli import fails, run
from lookless import DataError, Loaded, evaluate, load_data
from lookless.data import Seen

ROWS = [
    {"image": "a.png", "question": "what is it, exactly?", "answer": "red", "id": "7", "task": "colour"},
    {"image": "b.png", "question": 'is it "grey"?', "answer": "yes", "id": "8", "task": "colour"},
    {"image": "a.png", "question": "wie groß?\nin pixels", "answer": "8", "id": "9", "task": "size"},
]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 6), (200, 10, 10)).save(tmp_path / "a.png")
    Image.new("L", (5, 5), 128).save(tmp_path / "b.png")
    return tmp_path


def jsonl(folder, rows, name="data.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def table_of(folder, rows, **names):
    """A table whose images are inside, as Hugging Face's data sets have them."""
    import pyarrow

    held = [{**row, "image": {"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]}} for row in rows]
    held = [{names.get(key, key): value for key, value in row.items()} for row in held]
    return pyarrow.Table.from_pylist(held)


def parquet(folder, rows, name="data.parquet", group=2, **names):
    import pyarrow.parquet

    (folder / name).parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(table_of(folder, rows, **names), folder / name, row_group_size=group)
    return str(folder / name)


def saved(folder, rows, name="saved"):
    """As ``Dataset.save_to_disk`` leaves it: a stream of record batches, and JSON beside it."""
    import pyarrow

    (folder / name).mkdir(parents=True)
    table = table_of(folder, rows)
    with pyarrow.ipc.new_stream(folder / name / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    (folder / name / "state.json").write_text("{}")
    return str(folder / name)


def separated(folder, rows, name="data.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, [*ROWS[0]], delimiter="\t" if "tsv" in name else ",")
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / name)


KINDS = {
    "csv": separated,
    "tsv": lambda folder, rows: separated(folder, rows, "data.tsv"),
    "parquet": parquet,
    "saved": saved,
    "folder": lambda folder, rows: str(folder) if separated(folder, rows) else "",
    "data folder": lambda folder, rows: str(folder) if parquet(folder, rows, "data/test-0-of-1.parquet") else "",
    "pattern": lambda folder, rows: [
        parquet(folder, rows[:1], "test-0.parquet"),
        parquet(folder, rows[1:], "test-1.parquet"),
        str(folder / "test-*.parquet"),
    ][-1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_has_the_same_samples(folder, kind):
    plain = load_data(jsonl(folder, ROWS))
    (folder / "data.jsonl").unlink()
    made = KINDS[kind](folder, ROWS)
    found = load_data(made)
    assert found.hashes == plain.hashes
    assert found.hash == plain.hash
    assert [(s.id, s.task, s.question) for s in found] == [(r["id"], r["task"], r["question"]) for r in ROWS]
    assert not any(isinstance(image, Image.Image) for s in found for image in s.images)
    assert sorted(load_data(made, split="calibration").hashes) == sorted(plain.hashes)
    a, b, c = (sample.images[0].key for sample in found)
    assert a == c != b, "the same image in two rows is the same image"


def test_columns_are_named(folder):
    rows = [{"img": r["image"], "q": r["question"], "a": r["answer"], "qid": n, "junk": 3} for n, r in enumerate(ROWS)]
    columns = {"image": "img", "question": "q", "answer": "a", "id": "qid"}
    found = load_data(jsonl(folder, rows), columns=columns)
    assert found.hashes == load_data(jsonl(folder, ROWS)).hashes
    assert [sample.id for sample in found] == ["0", "1", "2"]
    names = {"image": "img", "question": "q", "answer": "a", "id": "qid"}
    assert load_data(parquet(folder, ROWS, **names), columns=columns).hashes == found.hashes
    with pytest.raises(DataError, match=r"line 1: there is no 'picture', it has img, q, a, qid, junk\."):
        load_data(jsonl(folder, rows), columns={"image": "picture"})
    with pytest.raises(DataError, match=r"row 1: answer: field required \(it has q, a, qid, img; --columns says which"):
        load_data(str(folder / "data.parquet"))
    with pytest.raises(DataError, match="a sample has no 'imgae': name columns for image, images"):
        load_data(jsonl(folder, rows), columns={"imgae": "img"})
    with pytest.raises(DataError, match=r"unknown key 'img' \(value 'a.png'\) \(--columns names the keys to read\)"):
        load_data(jsonl(folder, [{**ROWS[0], "img": "a.png"}]))


def test_several_right_answers_and_an_id_of_a_number(folder):
    rows = [
        {**ROWS[0], "answer": ["red", "crimson"], "id": 7},
        {**ROWS[1], "answer": [{"answer": "grey", "answer_id": 1}, {"answer": "gray", "answer_id": 2}]},
        {**ROWS[2], "answer": 8},
    ]
    found = load_data(jsonl(folder, rows))
    assert [sample.right for sample in found] == [("red", "crimson"), ("grey", "gray"), ("8",)]
    assert found.items[0].id == "7"
    plain = load_data(jsonl(folder, ROWS))
    assert found.hashes == plain.hashes, "answers are no part of a prompt"
    assert found.hash != plain.hash
    with pytest.raises(DataError, match="line 1: answer is an empty list"):
        load_data(jsonl(folder, [{**ROWS[0], "answer": []}]))


def test_a_task_file_stands_for_its_data(folder):
    parquet(folder, ROWS, image="img")
    task = {"data": "data.parquet", "columns": {"image": "img"}, "prompt_suffix": " In one word.", "metric": "gqa"}
    path = folder / "mine.json"
    path.write_text(json.dumps(task))
    found = load_data(str(path))
    assert (found.name, found.metric) == ("mine.json", "gqa")
    plain = load_data(jsonl(folder, ROWS))
    assert found.hashes == plain.hashes, "a question has been seen in whatever form it was put"
    assert found.hash != plain.hash, "and its answers are others"
    assert found.items[0].conversation()[0].parts == (Seen.IMAGE, "what is it, exactly? In one word.")
    for wrong, complaint in (
        ({"data": "none.jsonl"}, "No such file"),
        ({"metric": "gqa"}, "data: field required"),
        ({**task, "metric": "bleu"}, "no metric is called 'bleu'"),
        ({**task, "colums": {}}, "unknown key 'colums'"),
    ):
        path.write_text(json.dumps(wrong))
        assert complaint in fails("eval", "reference", "--data", path)
    assert "No such file" in fails("eval", "reference", "--data", folder / "none.json")


def words(text):
    return {"type": "text", "text": text}


def test_turns_of_a_conversation(folder):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [words("one "), {"type": "image"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [words("and "), {"type": "image"}, words("?")]},
    ]
    line = {"images": ["a.png", "b.png"], "messages": turns, "answer": "grey"}
    [sample] = load_data(jsonl(folder, [line]), prompt_suffix=" Now.")
    assert sample.question == "and ?"
    assert [turn.role for turn in sample.conversation()] == ["system", "user", "assistant", "user"]
    assert sample.conversation()[-1].parts == ("and ", Seen.IMAGE, "? Now.")
    assert sample.conversation()[1].message()["content"] == [words("one "), {"type": "image"}]
    other = {**line, "messages": [*turns[:2], {"role": "assistant", "content": "blue"}, turns[3]]}
    assert load_data(jsonl(folder, [other])).hashes != (sample.hash,)
    unplaced = {**line, "messages": [turns[0], {"role": "user", "content": "both?"}]}
    [sample] = load_data(jsonl(folder, [unplaced]))
    assert sample.conversation()[1].parts == (Seen.IMAGE, Seen.IMAGE, "both?")
    for wrong, complaint in (
        ({**line, "images": ["a.png"]}, "its messages have 2 images and it names 1"),
        ({**line, "messages": turns[:3]}, "the last message is of the assistant"),
        ({**line, "question": "too?"}, "give either question or messages, not both"),
        ({"image": "a.png", "answer": "x"}, "field required: question, or messages"),
        ({**line, "messages": [{"role": "user", "content": []}]}, "content"),
        ({**line, "video": ["a.png"], "videos": [["a.png"]]}, "give either video or videos, not both"),
    ):
        with pytest.raises(DataError, match=complaint):
            load_data(jsonl(folder, [wrong]))


def test_a_conversation_is_put_to_the_model(folder, reference):
    """The prompt has the turns in their order, and is answered; the suffix stands at its end."""
    said = {"user": "first", "assistant": "middle"}
    turns = [*({"role": who, "content": text} for who, text in said.items()), {"role": "user", "content": "last"}]
    samples = load_data(jsonl(folder, [{"image": "a.png", "messages": turns, "answer": "x"}]), prompt_suffix=" end")
    prompt = reference._prompt(samples.items[0])
    assert prompt.index("first") < prompt.index("middle") < prompt.index("last end")
    plain = load_data(jsonl(folder, [{"image": "a.png", "question": "last end", "answer": "x"}])).items
    longer = reference.inputs(samples.items)["input_ids"].shape[1]
    assert longer > reference.inputs(plain)["input_ids"].shape[1]
    assert evaluate(reference, samples, max_new_tokens=1, progress=False).answers[0].question == "last"


def test_a_video_is_refused_by_a_model_that_takes_none(folder, reference):
    line = {"video": ["a.png", "b.png"], "question": "what happens?", "answer": "x", "fps": 4}
    [sample] = load_data(jsonl(folder, [line]))
    assert [len(video) for video in sample.opened_videos()] == [2]
    assert sample.conversation()[0].parts == (Seen.VIDEO, "what happens?")
    with pytest.raises(DataError, match=r"line 1: reference takes no video: give its frames as images\."):
        reference.inputs([sample])
    frames = [image.tobytes() for image in sample.opened_videos()[0]]
    willing = Loaded(reference.model, SimpleNamespace(video_token="<video>"), "other", None)
    given = willing._videos([*load_data(jsonl(folder, ROWS)), sample])
    assert [[image.tobytes() for image in video] for video in given["videos"]] == [frames]
    assert given["video_metadata"] == [{"total_num_frames": 2, "fps": 4, "frames_indices": [0, 1]}]
    assert given["do_sample_frames"] is False
    assert willing._videos(load_data(jsonl(folder, ROWS)).items) == {}
    slower = load_data(jsonl(folder, [{**line, "fps": 1}]))
    assert slower.hashes != (sample.hash,)
    with pytest.raises(DataError, match="fps: input should be greater than 0"):
        load_data(jsonl(folder, [{**line, "fps": 0}]))


def bad_rows(folder):
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:40])
    return [ROWS[0], {**ROWS[1], "image": "gone.png"}, {"image": "a.png"}, {**ROWS[1], "image": "cut.png"}, ROWS[2]]


def test_bad_samples_are_skipped_if_asked_and_named(folder):
    path = jsonl(folder, bad_rows(folder))
    (folder / "data.jsonl").write_text((folder / "data.jsonl").read_text() + "{\n[]\n")
    with pytest.raises(DataError, match=r"data\.jsonl, line 2: the image .*gone\.png does not exist"):
        load_data(path)
    found = load_data(path, skip_bad=True)
    assert [sample.id for sample in found] == ["7", "9"]
    said = [one.partition(", ")[2] for one in sorted(found.bad, key=lambda one: one.partition("line ")[2])]
    assert [one[:7] for one in said] == [f"line {n}:" if n != 6 else "line 6 " for n in (2, 3, 4, 6, 7)]
    assert len(load_data(path, split="calibration", skip_bad=True)) == 2
    none = jsonl(folder, bad_rows(folder)[1:4])
    with pytest.raises(DataError, match=r"none of the 3 samples of .* can be read; the first: .* line 1: the image"):
        load_data(none, skip_bad=True)
    table = separated(folder, [ROWS[0]])
    with open(table, "a") as file:
        file.write("b.png,too,many,1,2,3\nb.png,fine,x,1,t\n")
    with pytest.raises(DataError, match=r"data\.csv, line 3 has 6 cells, and the first line names 5 columns"):
        load_data(table)
    assert [sample.question for sample in load_data(table, skip_bad=True)] == [ROWS[0]["question"], "fine"]


def test_damaged_tables_are_refused(folder, monkeypatch):
    path = parquet(folder, ROWS)
    whole = (folder / "data.parquet").read_bytes()
    (folder / "data.parquet").write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"data\.parquet cannot be read as data"):
        load_data(path)
    (folder / "data.parquet").write_bytes(whole)
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.parquet, row 1: the image cannot be read"):
        load_data(parquet(folder, ROWS, "bad.parquet"))
    with pytest.raises(DataError, match=r"none-\*\.parquet names 0 files"):
        load_data(str(folder / "none-*.parquet"))
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="is a folder without data: give reference"):
        load_data(str(empty))
    (folder / "set").mkdir()
    for split in ("train", "test"):
        (folder / "set" / split).mkdir()
        (folder / "set" / split / "data.arrow").write_bytes(b"")
    with pytest.raises(DataError, match="set holds test, train: give one of them"):
        load_data(str(folder / "set"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow, which is not installed: pip install 'lookless\[data\]'\."):
        load_data(path)


def test_a_table_of_photos_takes_the_memory_of_a_few(folder):
    import pyarrow

    rows = []
    for i in range(24):
        Image.effect_noise((200, 200), 90).convert("RGB").save(folder / f"{i}.png")
        rows.append({**ROWS[0], "image": f"{i}.png", "id": str(i)})
    path = parquet(folder, rows, group=2)
    size, before = (folder / "data.parquet").stat().st_size, pyarrow.total_allocated_bytes()
    tracemalloc.start()
    samples = load_data(path)
    assert {image.size for s in samples for image in s.opened()} == {(200, 200)}
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < size / 4
    assert peak < size / 2
    assert pyarrow.total_allocated_bytes() - before < size / 2


def test_the_commands_take_all_this(folder, reference):
    """One table, with names of its own and a sample that cannot be read; eval says what was skipped and by task."""
    load_data("reference:chart", limit=1).items[0].images[0].save(folder / "a.png")
    rows = [{**row, "image": "a.png"} for row in ROWS]
    (folder / "b.png").write_bytes(b"")
    path = parquet(folder, [*rows, {**ROWS[1], "image": "b.png"}], image="img")
    how = ["--data", path, "--columns", "image=img", "--prompt-suffix", " one word"]
    assert "data.parquet, row 4: the image cannot be read" in fails("eval", "reference", *how)
    result = run("eval", "reference", *how, "--skip-bad", "--metric", "contains", "--max-new-tokens", "2", "--json")
    assert result.exit_code == 0, result.output
    assert "SkippedWarning: 1 sample is skipped: " in result.stderr
    found = json.loads(result.stdout)
    assert (found["samples"], found["metric"], len(found["skipped"])) == (3, "contains", 1)
    assert [(a["id"], a["task"]) for a in found["answers"]] == [(r["id"], r["task"]) for r in ROWS]
    assert [(task["task"], task["samples"]) for task in found["tasks"]] == [("colour", 2), ("size", 1)]
    assert "not of the form image=img" in fails("eval", "reference", "--data", path, "--columns", "image")
    assert "no metric is called 'x'" in fails("eval", "reference", "--data", path, "--metric", "x")
    scores = folder / "scores.json"
    result = run("calibrate", "reference", *how, "--skip-bad", "--samples", "2", "--out", scores)
    assert result.exit_code == 0, result.output
    assert set(json.loads(scores.read_text())["sample_hashes"]) < {a["sample_hash"] for a in found["answers"]}


def test_what_the_processor_refuses_is_skipped_too(folder, reference):
    rows = [ROWS[0], {**ROWS[1], "question": f"what is {reference.processor.image_token}?"}]
    samples = load_data(jsonl(folder, rows), skip_bad=True)
    fitting = reference.fitting(samples, progress=False)
    assert [sample.id for sample in fitting] == ["7"]
    assert "line 2: the question holds" in fitting.bad[0]
    with pytest.raises(DataError, match=r"reference can be asked none of the samples of data\.jsonl; "):
        reference.fitting(load_data(jsonl(folder, rows[1:])), progress=False)


def test_images_of_a_cell_are_bytes_paths_or_lists(folder):
    import pyarrow
    import pyarrow.parquet

    content = (folder / "a.png").read_bytes()
    assert Image.open(io.BytesIO(content)).size == (8, 6)
    pieces = {"bytes": content, "path": None}, {"bytes": None, "path": "a.png"}
    tables = {
        "bytes": ({"image": [content]}, 1),
        "path": ({"image": ["a.png"]}, 1),
        "path in struct": ({"image": [pieces[1]]}, 1),
        "list": ({"images": [[pieces[0], pieces[0]]]}, 2),
        "paths": ({"images": [["a.png", "a.png"]]}, 2),
        "none": ({"image": pyarrow.array([None], pyarrow.binary())}, 0),
    }
    for name, (columns, count) in tables.items():
        table = pyarrow.table({**columns, "question": ["q"], "answer": ["a"], "width": [8]})
        pyarrow.parquet.write_table(table, folder / "one.parquet")
        [sample] = load_data(str(folder / "one.parquet"))
        assert [image.size for image in sample.opened()] == [(8, 6)] * count, name
