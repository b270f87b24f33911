"""``lookless bench --engine vllm`` without vLLM: what is asked, read, told and refused by played servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from typer.testing import CliRunner

from helpers import fake_vllm
from lookless import Geometry, Plan, Skip, files
from lookless.bench import vllm_server as server
from lookless.bench.traffic import HALF, _skipped, bench_traffic
from lookless.bench.traffic_client import Served, Traffic, served_geometry, served_model
from lookless.bench.traffic_report import HEADS, markdown_section, rows, save, traffic_table, verdict
from lookless.bench.traffic_results import SCHEMA_VERSION, ClientMetrics, Level, Round, TrafficReport
from lookless.bench.vllm_server import running, tail
from lookless.cli.main import app
from lookless.errors import GeometryError, LooklessError, ModelError, PlanError, ServingError
from lookless.flops import prefill
from lookless.loading import load_model
from lookless.reference import MODEL, question
from lookless.serving import launch
from lookless.serving.counters import parse_metrics
from lookless.serving.shipped import servable

FAKE = (sys.executable, fake_vllm.__file__)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The play, and a plan for it."""
    monkeypatch.setenv("FAKE_VLLM", str(tmp_path / "told"))
    for module in ("traffic", "traffic_client"):
        monkeypatch.setattr(f"lookless.bench.{module}.VLLM", FAKE)
    monkeypatch.setattr("lookless.serving.launch.find_spec", lambda name: name)
    stock = launch.command_for
    monkeypatch.setattr("lookless.bench.traffic.command_for", lambda *words: [*FAKE, *stock(*words)[3:]])
    (tmp_path / "told").touch()
    Plan.full(12).at([2, 5, 7], attention=Skip()).save_pretrained(tmp_path / "plan")
    return tmp_path


def subject(path="a-model"):
    return Served("a model", path, Geometry.from_config(transformers.AutoConfig.from_pretrained(MODEL)), 96)


def compared(folder, traffic=Traffic((1, 4), requests=4, rounds=3, answer=4), options=(), path="a-model"):  # noqa: B008
    said: list[str] = []
    plan = str(folder / "plan")
    report = bench_traffic(
        subject(path), plan, "mine", traffic, dtype="float32", options=options, folder=folder, log=said.append
    )
    return report, said


def test_who_is_asked_what(fake):
    """The same requests to both and others every time; who goes first alternates; nobody is left behind."""
    report, said = compared(fake, options=["--seed", "3"])
    calls = fake_vllm.told()
    stock, plan = calls[:2]
    assert stock["serve"][:-4] == ["a-model", "--dtype", "float32", "--seed", "3", *HALF]
    assert plan["serve"][: len(stock["serve"]) - 4] == stock["serve"][:-4]
    assert json.loads(plan["serve"][-5]) == {"lookless": {"plan": str(fake / "plan")}}
    port = {stock["serve"][-1]: "stock", plan["serve"][-1]: "plan"}
    runs = [(port[c["base-url"].rpartition(":")[2]], int(c["max-concurrency"]), int(c["seed"])) for c in calls[2:]]
    assert runs[:2] == [("stock", 4, 0), ("plan", 4, 0)]  # warm-up
    assert runs[2:6] == [("stock", 1, 1), ("plan", 1, 1), ("stock", 4, 2), ("plan", 4, 2)]
    assert runs[6:10] == [("plan", 1, 3), ("stock", 1, 3), ("plan", 4, 4), ("stock", 4, 4)]
    assert len(runs) == 14
    last = calls[-1]
    assert last["backend"] == "openai-chat"
    assert last["dataset-name"] == "random-mm"
    assert last["random-mm-bucket-config"] == "{(96, 96, 1): 1.0}"
    assert (last["random-input-len"], last["random-output-len"]) == ("66", "4")
    assert "round 3 of 3, concurrency 4" in said
    assert gone([*stock["pids"], *plan["pids"]])

    assert (report.visual, report.text) == (fake_vllm.VISUAL, fake_vllm.TEXT)
    assert report.rows_skipped == {"attention": 0.25, "ffn": 0}
    live = Plan.from_pretrained(fake / "plan").live()
    counts = {"visual": fake_vllm.VISUAL, "text": fake_vllm.TEXT}
    full, run = (prefill(report.geometry, **counts, plan=p).total for p in (None, live))
    assert report.flops_kept == pytest.approx(run / full)
    assert [[r.first for r in level.rounds] for level in report.levels] == [["stock", "plan", "stock"]] * 2
    assert report.levels[1].stock.ttft_ms == 54  # the median of seeds 2, 4 and 6
    assert TrafficReport.model_validate_json(report.model_dump_json()) == report


def gone(pids):
    """Whether these processes end, now that they were killed; on a busy machine not at once."""
    until = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, pids))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


def test_memory_is_halved_only_where_nobody_says(fake):
    compared(fake, Traffic((1,), 1, 2), ["--kv-cache-memory-bytes=1G"])
    assert HALF[0] not in fake_vllm.told()[0]["serve"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"FAKE_IDLE": "1"}, "the plan did not engage: no visual row was skipped"),
        ({"FAKE_LOSS": "1"}, "of 4 requests the stock server answered 3; the end of .*client.log"),
    ],
)
def test_what_goes_wrong_is_told(fake, monkeypatch, change, told):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ServingError, match=told):
        compared(fake)
    assert gone([pid for call in fake_vllm.told() for pid in call.get("pids", ())])


def test_a_server_that_dies_is_quoted(fake):
    with pytest.raises(ServingError, match=r"the stock server ended with code 7; .*stock\.log") as problem:
        compared(fake, path="broken")
    lines = str(problem.value).splitlines()
    assert lines[1] == "  ValueError: the cause"
    assert lines[-1] == "  RuntimeError: the last"
    assert len(lines) == 14


def test_a_server_that_is_never_ready(fake, monkeypatch):
    """By a clock that waits for what it says."""
    log, calls = fake / "log", count()
    clock = SimpleNamespace(
        monotonic=lambda: 2.0 if next(calls) and "waiting" in log.read_text() else 0.0, sleep=time.sleep
    )
    monkeypatch.setattr(server, "time", clock)
    words = [sys.executable, "-c", "import time, sys; print('waiting', flush=True); time.sleep(60)"]
    with (
        pytest.raises(ServingError, match=r"was not ready in 1 s; .*\n  waiting"),
        running("slow", words, log, log_line=lambda _: None, patience=1),
    ):
        pass


def test_sigterm_ends_the_servers(fake):
    """As Ctrl-C does, with all that they started."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom lookless.bench.vllm_server import running\n"
        f"with running('stock', {[*FAKE, 'serve', 'm']!r}, Path({str(fake / 'log')!r})):\n"
        "    print('ready', flush=True)\n    input()"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asked:
        while "ready" not in asked.stdout.readline():
            pass
        pids = fake_vllm.told()[0]["pids"]
        assert all(map(alive, pids))
        asked.send_signal(signal.SIGTERM)
        assert asked.wait(600) == 128 + signal.SIGTERM
    assert gone(pids)


def test_refused_before_anything_starts(fake):
    for options, told in ((["--port", "1"], "--port is set by"), (["--api-key=x"], "--api-key is set by")):
        with pytest.raises(ServingError, match=told):
            compared(fake, options=options)
    with pytest.raises(ServingError, match="--concurrency 16 is more than there are requests, 8"):
        Traffic((1, 16), requests=8)
    Plan.full(12).save_pretrained(fake / "plan")
    with pytest.raises(PlanError, match="mine skips nothing"):
        compared(fake)
    Plan.full(11).at([1], ffn=Skip()).save_pretrained(fake / "plan")
    with pytest.raises(PlanError, match="11"):
        compared(fake)
    assert not fake_vllm.told()


def test_counts_on_a_page():
    assert parse_metrics("# nothing\nother_total 1\n") is None
    assert parse_metrics(fake_vllm.METRICS % (5, 7, 12)) == {
        "attention": {"skipped": 5, "computed": 7},
        "ffn": {"skipped": 0, "computed": 12},
    }


def test_counts_that_are_lost_are_no_share():
    some = {"attention": {"skipped": 1, "computed": 3}, "ffn": {"skipped": 0, "computed": 4}}
    more = {"attention": {"skipped": 3, "computed": 5}, "ffn": {"skipped": 4, "computed": 4}}
    assert _skipped(some, more) == {"attention": 0.5, "ffn": 1}
    with pytest.raises(ServingError, match="lost its counts"):
        _skipped(more, some)


def load(**changes):
    return ClientMetrics(
        **{
            "requests_per_s": 4.0,
            "tokens_per_s": 16.0,
            "ttft_ms": 100.0,
            "ttft_p95_ms": 200.0,
            "tpot_ms": 10.0,
            **changes,
        }
    )


def level(concurrency, paces):
    rounds = [
        Round(first="stock", stock=load(requests_per_s=stock), plan=load(requests_per_s=plan, ttft_ms=80.0))
        for stock, plan in paces
    ]
    return Level.of(concurrency, rounds)


def test_ratios_are_of_rounds():
    """A round that is slow for both does not tell for either."""
    one = level(4, [(4, 5), (1, 1.2), (2, 2.2)])
    assert one.ratios.requests == pytest.approx(1.2)
    assert (one.stock.requests_per_s, one.plan.requests_per_s) == (2, 2.2)
    assert one.ratios.ttft == pytest.approx(0.8)
    assert one.ratios.tpot == 1


@pytest.fixture
def report():
    return TrafficReport(
        model="a model",
        plan="mine",
        geometry=Geometry.preset("LLaVA-1.5-7B"),
        visual=576,
        text=70,
        answer=16,
        requests=32,
        dtype="bfloat16",
        device="a machine",
        cores=2,
        options=("--enforce-eager",),
        versions={"vllm": "0.32.0"},
        flops_kept=0.75,
        rows_skipped={"attention": 0.5, "ffn": 0.25},
        levels=(level(1, [(2, 3), (2, 3)]), level(4, [(8, 6), (8, 6)])),
    )


def test_table_and_files(report, tmp_path):
    table = rows(report)
    assert table[0] == ("1", "stock", "2.00", "16.00", "100", "200", "10.0")
    assert table[1] == ("", "plan", "3.00 (1.50)", "16.00 (1.00)", "80.0 (0.80)", "200 (1.00)", "10.0 (1.00)")
    assert [row[0] for row in table] == ["1", "", "4", ""]
    assert "keeps 75.0% of the decoder's prefill FLOPs (skipped: 50% of attention rows, 25% of ffn" in verdict(report)
    pace = "In requests/s it is faster than stock at concurrency 1, slower than stock at concurrency 4."
    assert f"80.0% of TTFT at concurrency 1. {pace}" in verdict(report)
    torn = report.model_copy(update={"levels": (level(1, [(2, 3), (3, 2)]), level(4, [(8, 9), (9, 8)]))})
    assert "it is not told apart from stock (rounds disagree) at concurrency 1, 4." in verdict(torn)
    assert traffic_table(report).row_count == 4
    save(report, tmp_path)
    assert TrafficReport.model_validate_json((tmp_path / "traffic.json").read_text()) == report
    text = (tmp_path / "traffic.md").read_text()
    assert "| " + " | ".join(HEADS) + " |" in text
    assert all("| " + " | ".join(row) + " |" in text for row in table)
    assert markdown_section(report) in text
    assert "bfloat16, a machine, 2 cores, vllm 0.32.0 (--enforce-eager); 2 rounds of 32 requests" in text


def test_a_report_of_an_older_schema_is_refused(report, tmp_path):
    """Its keys had other names; nothing is read in silence."""
    old = tmp_path / "traffic.json"
    old.write_text(report.model_dump_json(exclude={"schema_version"}).replace("ttft_ms", "first_token_ms"))
    with pytest.raises(LooklessError, match=r"traffic.json is not a valid trafficreport: .*ttft_ms.*required"):
        files.load(old, TrafficReport, LooklessError, SCHEMA_VERSION)


def test_the_command(fake):
    words = ["bench", "reference", "--engine", "vllm", "--plan", str(fake / "plan"), "--concurrency", "2"]
    words += ["--requests", "2", "--rounds", "2", "--vllm", "--max-model-len 512", "--out", str(fake / "out")]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    report = TrafficReport.model_validate_json(done.stdout)
    assert report.plan == str(fake / "plan")
    assert report.options == ("--max-model-len", "512")
    assert [level.concurrency for level in report.levels] == [2]
    names = {"traffic.json", "traffic.md", "stock.log", "plan.log", "client.log", "client.json"}
    assert {p.name for p in (fake / "out").iterdir()} == names
    assert not Path(fake_vllm.told()[0]["serve"][0]).exists()  # the copy that was served


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["reference", "--engine", "sglang"], "engine 'sglang' is not one of transformers, vllm"),
        (["reference", "--concurrency", "4"], "--concurrency is for --engine vllm, and this is transformers"),
        (["reference", "--vllm", "--enforce-eager"], "--vllm is for --engine vllm"),
        (["reference", "--engine", "vllm", "--batch", "4"], "--batch is for --engine transformers, and this is vllm"),
        (["reference", "--engine", "vllm", "--device", "cuda"], "--device is for --engine transformers"),
        (["reference", "--engine", "vllm"], "0 plans are named, and one is served beside stock"),
        (["reference", "--engine", "vllm", "--plan", "a", "--method", "shortv"], "2 plans are named"),
        (["reference", "--engine", "vllm", "--plan", "a", "--requests", "8"], "--concurrency 16 is more"),
        (["no/such/model/here", "--engine", "vllm", "--method", "shortv"], "is not a model's folder"),
        (["reference", "--engine", "vllm", "--method", "fastv"], "vLLM cannot serve that"),
        (["reference", "--engine", "vllm", "--vllm", "--port 3", "--method", "shortv"], "--port is set by"),
        (["reference", "--engine", "vllm", "--vllm", "it's", "--method", "shortv"], "No closing quotation"),
    ],
)
def test_the_command_refuses(words, told, monkeypatch):
    monkeypatch.setattr("lookless.serving.launch.find_spec", lambda name: name)
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == 2
    assert done.stdout == ""
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("lookless: ")
    assert told in line


def test_the_command_without_vllm(monkeypatch):
    monkeypatch.setattr("lookless.serving.launch.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["bench", "reference-qwen3-vl", "--engine", "vllm", "--method", "shortv"])
    assert done.exit_code == 2
    assert done.stderr == "lookless: vLLM is not installed here: pip install '.[vllm]' in a checkout of lookless.\n"


@pytest.mark.parametrize("name", ["LLaVA-1.5-7B", "Qwen2.5-VL-7B", "Qwen3-VL-8B"])
def test_a_dummy_checkpoint_is_a_checkpoint(name, tmp_path):
    """Real widths, no weights, and an image is as many tokens as asked for."""
    preset = Geometry.preset(name)
    served = served_geometry(name, tmp_path, layers=4, visual=100)
    assert served.geometry == preset.model_copy(update={"model_type": "llava", "layers": 4})
    assert served.options == ("--load-format", "dummy")
    assert served.side == 140
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    layer = model.model.language_model.layers[3]
    assert layer.self_attn.k_proj.weight.shape == (preset.kv_heads * preset.head_dim, preset.hidden)
    assert layer.mlp.up_proj.weight.shape == (preset.intermediate, preset.hidden)
    assert len(model.model.vision_tower.encoder.layers) == round(24 * 4 / preset.layers)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    image, asked, _ = question("chart", "test", 0)
    content = [{"type": "image"}, {"type": "text", "text": asked}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids = processor(images=image, text=text)["input_ids"][0]
    assert ids.count(config.image_token_index) == 100


def test_a_dummy_checkpoint_refuses(tmp_path):
    with pytest.raises(ModelError, match="577 is no square: try 576"):
        served_geometry("LLaVA-1.5-7B", tmp_path, layers=4, visual=577)
    with pytest.raises(GeometryError, match="99 layers were asked for"):
        served_geometry("LLaVA-1.5-7B", tmp_path, layers=99, visual=576)


def test_a_shipped_model_for_vllm(tmp_path, reference):
    """The same model under the published names of its weights."""
    served = served_model("reference", tmp_path / "copy")
    assert served.path == str(tmp_path / "copy")
    copy = load_model(served.path, dtype="float32")
    for name, weight in reference.model.state_dict().items():
        assert torch.equal(copy.model.state_dict()[name], weight)
    assert servable("some/model", tmp_path / "other") == "some/model"
    assert not (tmp_path / "other").exists()


def test_the_end_of_a_log(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"ok\n\xff\n")
    assert tail(log).splitlines()[1:] == ["  ok", "  \ufffd"]
