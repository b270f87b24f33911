"""What of the vLLM plug-in needs no engine: who may read whom in a flat batch, what is refused, what is counted."""

from __future__ import annotations

import base64
import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from helpers.plans import FULL, HIDDEN, linear, mean
from helpers.steps import STEPS, T, V, flat
from lookless import Keep, Plan, Sink, Skip, Window
from lookless.errors import PlanError, ServingError
from lookless.serving.affine import AffineMap
from lookless.serving.counters import COMPILED, FEW, STEPS_NAME, Collector, Counter, parse_metrics, read, read_steps
from lookless.serving.launch import command
from lookless.serving.settings import KEY, Settings, check_plan, check_request, entry, live_rows
from lookless.serving.steps import VisualPast, check_ran, runs_of, text_alone, text_first

FITTED = FULL.at([1], attention=mean(), ffn=linear(3)).at([3], ffn=linear(2))


@pytest.mark.parametrize("queries", ["text", "read", "all"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_virtual_requests_read_what_a_mask_allows(step, queries):
    """Causal attention of each run, aligned to its last key, against one mask over each whole sequence."""
    visual, starts, lengths = flat(step)
    order = text_first(visual, starts)
    rows = order.rows[: {"text": order.text, "read": order.read, "all": order.tokens}[queries]]
    runs = runs_of(rows, starts, lengths)
    assert runs.starts[-1] == len(rows)
    torch.manual_seed(0)
    query = torch.randn(len(visual), 4)
    caches = [(torch.randn(n, 4), torch.randn(n, 4)) for n in lengths]

    expected = []
    for i in rows:
        r = max(r for r in range(len(lengths)) if starts[r] <= i < starts[r + 1])
        place = lengths[r] - (starts[r + 1] - i)
        weights = (query[i] @ caches[r][0][: place + 1].T / 2).softmax(-1)
        expected.append(weights @ caches[r][1][: place + 1])
    got = []
    for run in range(len(runs.request)):
        key, value = (x[: runs.lengths[run]] for x in caches[runs.request[run]])
        mine = query[rows[runs.starts[run] : runs.starts[run + 1]]]
        count, keys = len(mine), len(key)
        mask = torch.ones(count, keys, dtype=torch.bool).tril(keys - count)  # as a paged kernel aligns it
        got.append(F.scaled_dot_product_attention(mine[None], key[None], value[None], mask)[0])
    if expected:
        torch.testing.assert_close(torch.cat(got), torch.stack(expected))
    assert runs.longest == max(map(len, got), default=0)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_text_comes_first_then_what_is_answered_from(step):
    """Padding, behind the tokens, comes last; and each row finds its place."""
    visual, starts, _ = flat(step)
    padded = np.concatenate((visual, [False, False]))
    order = text_first(padded, starts)
    last = {int(end) - 1 for start, end in pairwise(starts) if end > start}
    tokens = range(len(visual))
    text = [i for i in tokens if not visual[i]]
    answered = [i for i in tokens if visual[i] and i in last]
    others = [i for i in tokens if visual[i] and i not in last]
    assert order.rows.tolist() == [*text, *answered, *others, len(visual), len(visual) + 1]
    assert (order.text, order.read, order.tokens) == (len(text), len(text) + len(answered), len(visual))
    assert order.rows[order.places].tolist() == list(range(len(padded)))


def test_runs_are_as_long_as_they_can_be():
    visual, starts, lengths = flat(STEPS["two images"])
    order = text_first(visual, starts)
    assert np.diff(runs_of(order.rows[: order.text], starts, lengths).starts).tolist() == [1, 1, 2]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_cache_of_text_alone_has_no_gaps(step):
    """Whatever of a request was visual before: its text is in the place that it has among the request's text."""
    visual, starts, lengths = flat(step)
    past = lengths - np.diff(starts)
    before = np.random.default_rng(0).integers(0, past + 1)
    order = text_first(visual, starts)
    rows = order.rows[: order.text]
    runs, places = text_alone(rows, starts, lengths, before)
    expected, requests = [], []
    for request, (start, end) in enumerate(pairwise(starts)):
        text = int(past[request] - before[request])
        for row in range(start, end):
            if not visual[row]:
                expected.append(text)
                requests.append(request)
                text += 1
    assert places.tolist() == expected
    assert np.repeat(runs.request, np.diff(runs.starts)).tolist() == requests
    assert len(set(runs.request)) == len(runs.request)
    last = dict(zip(requests, expected, strict=True))
    assert dict(zip(runs.request.tolist(), runs.lengths.tolist(), strict=True)) == {
        r: place + 1 for r, place in last.items()
    }


def test_visual_tokens_behind_a_request_are_known():
    """In chunks, beside others, and anew where it was put off; its blocks may then be another's."""
    past = VisualPast()

    def step(*requests):
        visual, starts, lengths = flat([(tokens, behind) for _, tokens, behind in requests])
        return past.before(np.array([block for block, *_ in requests]), visual, starts, lengths).tolist()

    assert step((7, [T, V, V], 0), (3, [T], 0)) == [0, 0]
    assert step((3, [T], 1), (7, [V, T], 3), (4, [], 2)) == [0, 2, 0]
    assert step((7, [T], 5)) == [3]
    assert step((7, [V], 0), (5, [T, T], 0)) == [0, 0]
    assert step((7, [T], 1), (5, [T], 2)) == [1, 0]
    with pytest.raises(ServingError, match="goes on behind 9 tokens, of which 2 were seen"):
        step((7, [T], 9))


def test_layers_without_the_plan_are_found():
    check_ran(3, 3)
    with pytest.raises(ServingError, match="2 of the model's 3 layers"):
        check_ran(2, 3)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (
            {"keep": Keep(0.5, rank="random")},
            r"layer 2 .* has keep: .* would have to choose its tokens before the rest",
        ),
        ({"visible": Skip()}, r"has visible: .* read by whole blocks"),
        ({"visible": Sink(), "attention": Skip()}, r"has visible: .* read by whole blocks"),
        ({"decode": Skip()}, r"has decode: .* holds every token"),
        (
            {"before": Skip()},
            r"has before: skip, .* shares keys of text before an image with",
        ),
        ({"attention": Window(4)}, r"has attention: .* Full, Skip, Mean and Linear alone"),
    ],
    ids=str,
)
def test_what_a_paged_engine_cannot_do_is_refused(cells, told):
    with pytest.raises(PlanError, match=told):
        check_plan(Plan.full(4).at([2], **cells))
    check_plan(Plan.full(4).at([0, 1], attention=Skip()).at([1, 2], ffn=Skip()))
    check_plan(FITTED)
    check_plan(Plan.full(4).at([1], visible=Skip(), attention=Skip()).at([2], keep=Keep(0)).at([3], visible=Skip()))


def given(plan: Plan) -> SimpleNamespace:
    """vLLM's configuration as a worker gets it: what is stored in it has to be JSON."""
    return SimpleNamespace(additional_config=json.loads(json.dumps({KEY: entry(plan, "where")})))


def test_numbers_travel_with_the_configuration():
    settings = Settings.of(given(FITTED))
    assert settings.plan == FITTED
    assert not any(weights.is_bound for weights in settings.plan.weights)
    for got, sent in zip(settings.bound_plan().weights, FITTED.weights, strict=True):
        assert {part: x.tolist() for part, x in got.parts.items()} == {p: x.tolist() for p, x in sent.parts.items()}
    assert Settings.of(given(Plan.full(4))) == Settings(Plan.full(4), "")
    assert Settings.of(given(Plan.full(4))).bound_plan() == Plan.full(4)

    changed = bytearray(base64.b64decode(settings.numbers))
    changed[-1] ^= 1
    with pytest.raises(PlanError, match="numbers in what the engine was given are not those that were saved"):
        Settings(settings.plan, base64.b64encode(changed).decode()).bound_plan()
    with pytest.raises(PlanError, match="are not beside it"):
        Settings(settings.plan, entry(FULL.at([1], ffn=mean(7)), "where")["numbers"]).bound_plan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_map_adds(dtype):
    """Of each row alone, in float64; and no buffer is looked for in a checkpoint."""
    torch.manual_seed(0)
    x = torch.randn(4, HIDDEN, dtype=dtype)
    norm = torch.nn.RMSNorm(HIDDEN, eps=1e-6, dtype=dtype)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.2}
    for cell in (linear(3), mean()):
        parts = {name: part.astype(np.float64) for name, part in cell.weights.parts.items()}
        made = AffineMap(cell, dtype)
        assert not made.state_dict()
        assert all(buffer.dtype == dtype for buffer in made.buffers())
        for got, taken in ((made(x, norm), norm(x)), (made(x), x)):
            expected = np.stack(
                [
                    parts["constant"] + (parts["up"] @ (parts["down"] @ row) if "up" in parts else 0)
                    for row in taken.detach().double().numpy()
                ]
            )
            torch.testing.assert_close(got.double(), torch.from_numpy(expected), **close)


def test_a_constant_needs_no_norm():
    def norm(x):
        raise AssertionError("a norm was computed for nothing")

    assert AffineMap(mean(), torch.float32)(torch.zeros(2, HIDDEN), norm).shape == (2, HIDDEN)


def test_counts_of_all_workers_are_told(tmp_path):
    first, second = Counter(tmp_path), Counter(tmp_path)
    first.add({"attention": {"skipped": 5, "computed": 7}, "ffn": {"skipped": 0, "computed": 12}}, COMPILED)
    for step in (COMPILED, FEW):
        second.add({"attention": {"skipped": 1, "computed": 2}, "ffn": {"skipped": 3, "computed": 4}}, step)
    (tmp_path / "half-written.rows").write_bytes(b"\0\0\0")
    expected = {"attention": {"skipped": 7, "computed": 11}, "ffn": {"skipped": 6, "computed": 20}}
    assert read(tmp_path) == expected
    assert {how: count for how, count in read_steps(tmp_path).items() if count} == {COMPILED: 2, FEW: 1}
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    registry.register(Collector(tmp_path))
    page = client.generate_latest(registry).decode()
    assert parse_metrics(page) == expected
    assert f'{STEPS_NAME}_total{{reason="",run="compiled"}} 2.0' in page
    assert f'{STEPS_NAME}_total{{reason="{FEW}",run="eager"}} 1.0' in page


@pytest.fixture
def plan(tmp_path):
    Plan.full(4).at([2], attention=Skip()).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr("lookless.serving.launch.find_spec", lambda name: name)


def test_serve_is_vllms_command(plan, installed):
    words = command("some/model", plan, ["--port", "80", "--additional-config", '{"other": 1}', "--seed", "3"])
    assert words[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", "some/model"]
    assert words[5:-2] == ["--port", "80", "--seed", "3"]
    assert words[-2] == "--additional-config"
    assert json.loads(words[-1]) == {"other": 1, "lookless": {"plan": plan}}
    assert json.loads(command("some/model", plan, ['--additional-config={"a": 2}'])[-1])["a"] == 2
    words = command("reference", plan, ["--port", "80"])
    assert words[5:9] == ["--served-model-name", "reference", "--port", "80"]
    shipped = Path(words[4])  # a copy with the names that vLLM wants
    assert any("vision_tower.vision_model" in name for name in load_file(shipped / "model.safetensors"))
    shutil.rmtree(shipped.parent)


def test_serve_shares_no_prefixes_under_a_plan_that_cannot(tmp_path, installed):
    """Unless it is asked to: the engine then says why not."""
    Plan.full(4).at([2], keep=Keep(0)).save_pretrained(tmp_path)
    off, on = "--no-enable-prefix-caching", "--enable-prefix-caching"
    assert command("some/model", str(tmp_path), ["--seed", "3"])[5:8] == ["--seed", "3", off]
    for word in (off, on):
        words = command("some/model", str(tmp_path), [word])
        assert [each for each in words if each in (off, on)] == [word]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--additional-config", "{"], "is not JSON"),
        (["--additional-config", "[1]"], "is not a JSON object"),
        (["--additional-config", '{"lookless": {"plan": "x"}}'], "not twice"),
    ],
)
def test_serve_refuses(plan, installed, options, told):
    with pytest.raises(ServingError, match=told):
        command("some/model", plan, options)


def test_serve_without_vllm(plan, monkeypatch):
    monkeypatch.setattr("lookless.serving.launch.find_spec", lambda name: None)
    with pytest.raises(ServingError, match="pip install"):
        command("some/model", plan, [])


@pytest.mark.parametrize(
    ("seen", "wanted", "told"),
    [
        (["image"], 0, "prompt_logprobs of a prompt with an image"),
        (["image", "video"], None, None),
        ([], 1, None),
    ],
)
def test_requests_that_a_plan_cannot_answer(seen, wanted, told):
    features = [SimpleNamespace(modality=modality) for modality in seen]
    request = SimpleNamespace(mm_features=features, sampling_params=SimpleNamespace(prompt_logprobs=wanted))
    if told:
        with pytest.raises(ServingError, match=told):
            check_request(request)
    else:
        check_request(request)


def test_projections_stay_whole_where_they_are_quantised():
    """The last layer's attention on visual rows is dead work, and a quantised projection cannot be split."""
    plan, last = FULL.at([1], ffn=Skip()), len(FULL.layers) - 1
    plain = live_rows(plan, SimpleNamespace(quant_config=None))
    assert plain[last].attention == Skip()
    rows = live_rows(plan, SimpleNamespace(quant_config=object()))
    assert all(row.attention.is_full for row in rows)
    assert [row.ffn for row in rows] == [row.ffn for row in plain]
