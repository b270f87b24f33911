"""The other classes, on tiny random models; and what is refused, in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from lmms_eval.models import MODEL_REGISTRY_V2, get_model

import lookless
from engine import checkpoints
from engine.checkpoints import CHECKPOINTS, LAYERS
from lookless.errors import LooklessError, ModelError, PlanError, PlanMismatchError
from lookless.lmms.export import write_task
from lookless.lmms.names import CLASSES
from lookless.reference import NAMES
from runs import answers, run, shares


def _qwen3_5(words: Any) -> tuple[Any, Any]:
    """Gated attention in layers 1 and 3, gated delta rules in the others."""
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    text = {
        **checkpoints._TEXT,
        "rope_parameters": checkpoints._rope(4, 2, 2, mrope_interleaved=True, partial_rotary_factor=0.5),
        "layer_types": ["full_attention" if layer % 2 else "linear_attention" for layer in range(LAYERS)],
        **heads,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    tower = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128, "num_heads": 2}
    config = hf.Qwen3_5Config(
        text_config=text,
        vision_config={**tower, "num_position_embeddings": 64},
        tie_word_embeddings=False,
        **checkpoints._IDS,
    )
    images = hf.Qwen2VLImageProcessor(**checkpoints._pixels(16))
    videos = hf.Qwen3VLVideoProcessor(**checkpoints._pixels(16))
    model = hf.Qwen3_5ForConditionalGeneration(config)
    for layer in model.model.language_model.layers[::2]:
        torch.nn.init.constant_(layer.linear_attn.A_log, -5)  # else the image is forgotten when the answer begins
    return model, hf.Qwen3VLProcessor(images, words, videos, words.chat_template)


#: Of lmms-eval's classes, those that no shipped model is for, and one with a second architecture.
TINY = {
    "qwen2_5_vl": CHECKPOINTS["qwen2_5_vl"],
    "qwen3_5": checkpoints.of_qwen("qwen3_5", _qwen3_5),
    "internvl_hf": CHECKPOINTS["internvl"],
    "llava_hf": CHECKPOINTS["llava_next"],
}
#: What ``--model_args`` says besides. The class for Qwen3.5 takes for an answer what follows the model's thoughts.
MORE = {"qwen3_5": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def include(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_task(lookless.load_data("reference:chart", limit=2), folder, "chart")
    return folder


@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name, include, tmp_path):
    model = TINY[name].save(tmp_path / "model")
    geometry = lookless.Geometry.from_config(hf.AutoConfig.from_pretrained(model))
    plan = lookless.Plan.full(geometry).at(range(1, 5), attention=lookless.Skip(), ffn=lookless.Skip())
    plan.save_pretrained(tmp_path / "plan")
    task, args = "lookless_chart", {"pretrained": model, **MORE.get(name, {})}
    stock = run(name, [task], include, tmp_path, **args)
    without = run(f"lookless_{name}", [task], include, tmp_path, **args)
    planned = run(f"lookless_{name}", [task], include, tmp_path, plan=tmp_path / "plan", **args)
    assert answers(without, task) == answers(stock, task)
    assert all(answers(stock, task))
    assert answers(planned, task) != answers(stock, task)
    found = shares(planned)
    assert max(found["query"], found["ffn"]) < 1 == found["key"]


def test_batches(include, tmp_path):
    """Prompts of different lengths, padded."""
    lookless.Plan.full(12).at([3, 4], attention=lookless.Skip()).save_pretrained(tmp_path / "plan")
    args = {"pretrained": "reference-qwen3-vl", "plan": tmp_path / "plan"}
    one = run("lookless_qwen3_vl", ["lookless_chart"], include, tmp_path, **args)
    two = run("lookless_qwen3_vl", ["lookless_chart"], include, tmp_path, batch_size=2, **args)
    assert answers(one, "lookless_chart") == answers(two, "lookless_chart")


def test_every_class_is_there_and_is_lmms_evals():
    for name in CLASSES:
        made, stock = get_model(f"lookless_{name}"), get_model(name)
        assert issubclass(made, stock)
        assert made is not stock
        assert MODEL_REGISTRY_V2.get_manifest(name).chat_class_path.startswith("lmms_eval.")


@pytest.fixture
def refuse(tmp_path, capsys):
    """Make the plan, ask lmms-eval's way for a model, and give the sentence that ended it."""

    def refused(name: str, pretrained: Any, plan: Any, kind: type[LooklessError]) -> str:
        words = f"pretrained={pretrained},plan={plan},device_map=cpu"
        made = get_model(f"lookless_{name}")
        with pytest.raises(SystemExit) as ended:
            made.create_from_arg_string(words, {"device": "cpu"})
        assert ended.value.code == 2
        assert type(ended.value.__cause__) is kind
        [sentence] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lookless: ")]
        with pytest.raises(kind, match=re.escape(sentence.removeprefix("lookless: "))):
            made(pretrained=str(pretrained), plan=str(plan), device="cpu", device_map="cpu")
        return sentence

    return refused


@pytest.fixture
def plan(tmp_path) -> Path:
    lookless.Plan.full(12).at([3], attention=lookless.Skip()).save_pretrained(tmp_path / "plan")
    return tmp_path / "plan"


def test_a_plan_of_another_architecture(refuse, tmp_path):
    geometry = lookless.Geometry.from_config(hf.AutoConfig.from_pretrained(NAMES["reference"]))
    lookless.Plan.full(geometry).at([3], attention=lookless.Skip()).save_pretrained(tmp_path / "llava")
    assert "for another architecture" in refuse("qwen3_vl", "reference-qwen3-vl", tmp_path / "llava", PlanMismatchError)
    lookless.Plan.full(32).at([3], attention=lookless.Skip()).save_pretrained(tmp_path / "long")
    told = refuse("qwen3_vl", "reference-qwen3-vl", tmp_path / "long", PlanMismatchError)
    assert "the plan has 32 layers and the model has 12" in told


def test_folders_that_are_not_there(refuse, plan, tmp_path):
    assert "no-plan" in refuse("qwen3_vl", "reference-qwen3-vl", tmp_path / "no-plan", PlanError)
    assert "no config.json" in refuse("qwen3_vl", tmp_path / "no-model", plan, ModelError)
    assert "names no plan" in refuse("qwen3_vl", "reference-qwen3-vl", "", PlanError)


def test_a_model_that_is_not_supported(refuse, plan, tmp_path):
    hf.MllamaConfig().save_pretrained(tmp_path / "model")  # refused before its weights are looked for
    assert "'mllama' are not supported" in refuse("qwen3_vl", tmp_path / "model", plan, ModelError)


def test_a_plan_set(refuse, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "planset.json").write_text("{}")
    assert "holds a plan set" in refuse("qwen3_vl", "reference-qwen3-vl", tmp_path / "set", PlanError)
