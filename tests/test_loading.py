"""A folder is loaded whole or refused: every family's images without torchvision, and no weight made up."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lookless import Plan, Skip, load_data, load_model
from lookless.cli.main import app
from lookless.configs import geometry_named
from lookless.data import Sample
from lookless.errors import DataError, ModelError
from lookless.loading import images_only

_spec = importlib.util.spec_from_file_location("tiny_checkpoints", Path(__file__).parent / "engine" / "checkpoints.py")
checkpoints = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = checkpoints
_spec.loader.exec_module(checkpoints)


def _onevision(words):
    side = checkpoints._SIDE
    tower = {**checkpoints._TOWER, "image_size": side, "patch_size": checkpoints._PATCH, "vision_use_head": False}
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower).to_dict(),
        text_config=hf.Qwen2Config(**checkpoints._TEXT).to_dict(),
        image_token_index=checkpoints.IMAGE,
        video_token_index=checkpoints.VIDEO,
        image_grid_pinpoints=[[side, side], [side, 2 * side]],
        tie_word_embeddings=False,
    )
    images = hf.LlavaOnevisionImageProcessor(
        size={"height": side, "width": side}, image_grid_pinpoints=[[side, side], [side, 2 * side]]
    )
    processor = hf.LlavaOnevisionProcessor(
        images,
        words,
        None,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=words.chat_template,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


FAMILIES = {**checkpoints.CHECKPOINTS, "llava_onevision": checkpoints.Checkpoint("llava_onevision", _onevision)}
VIDEOS = ("Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor", "InternVLVideoProcessor")
PROCESSORS = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "InternVL", "LlavaOnevision")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a family's tiny checkpoint, with its image processor, on a machine without torchvision."""
    made = {}

    def save(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                for video in VIDEOS:
                    patch.setattr(hf, video, lambda **_: None)
                for kind in PROCESSORS:
                    patch.setattr(hf, f"{kind}Processor", images_only(getattr(hf, f"{kind}Processor")))
                made[name] = FAMILIES[name].save(tmp_path_factory.mktemp(name))
        return made[name]

    return save


@pytest.fixture
def no_torchvision(monkeypatch):
    monkeypatch.setattr("transformers.utils.is_torchvision_available", lambda: False)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_need_no_torchvision(folder_of, no_torchvision, name):
    """One prompt as by a Pillow processor put together by hand, a batch of both sizes, an answer, and no video."""
    loaded = load_model(str(folder_of(name)))
    a, b = (Sample((Image.effect_noise(size, 80).convert("RGB"),), "what?", "") for size in FAMILIES[name].sizes)
    inputs = loaded.inputs([b])
    by_hand = loaded.processor.image_processor([b.images[0]], return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], by_hand)
    logits = loaded.model(**inputs).logits
    assert torch.isfinite(logits).all()
    assert (inputs["input_ids"] == checkpoints.IMAGE).sum() >= 4
    batch = loaded.inputs([a, b])
    last = loaded.model(**batch).logits[1, -1]
    assert torch.allclose(last, logits[0, -1], atol=1e-3)
    assert len(loaded.answer([a, b], max_new_tokens=2)) == 2
    if name not in ("llava", "llava_next"):
        with pytest.raises(ModelError, match="videos need torchvision, which is not installed"):
            loaded.processor(text=["x"], videos=[[a.images[0]]])
        with pytest.raises(DataError, match="refuses it: videos need torchvision, which is not installed"):
            loaded.inputs([Sample((), "what?", "", videos=(a.images,))])


def fails(*arguments) -> str:
    """The one sentence of a refused command."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="lookless")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("lookless: ")
    return line


@pytest.fixture
def folder(folder_of, tmp_path):
    """A copy of a LLaVA's folder, to be spoilt."""
    for file in folder_of("llava").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def changed(folder, change):
    path = folder / "model.safetensors"
    weights = change(load_file(path))
    save_file(weights, path, metadata={"format": "pt"})


def _without(weights):
    return {name: weight for name, weight in weights.items() if "layers.2.mlp.up_proj" not in name}


def _renamed(weights):
    return {name.replace("layers.2.mlp.up_proj", "layers.2.mlp.lost"): weight for name, weight in weights.items()}


@pytest.mark.parametrize(("change", "also"), [(_without, ""), (_renamed, "layers.2.mlp.lost.weight instead")])
def test_missing_weights_are_named(folder, change, also):
    changed(folder, change)
    for command in (("eval", folder, "--data", "reference"), ("generate", folder, "--prompt", "x")):
        told = fails(*command)
        assert "layers.2.mlp.up_proj.weight would be random numbers" in told
        assert also in told


def _cut(weights):
    name = next(name for name in weights if "layers.2.mlp.up_proj" in name)
    return weights | {name: weights[name][:-1].contiguous()}


def _more(weights):
    return weights | {"model.language_model.layers.0.self_attn.q_norm.weight": torch.ones(8)}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_cut, "do not fit its config.json: model.language_model.layers.2.mlp.up_proj.weight is"),
        (_more, "of another model"),
    ],
)
def test_weights_of_another_shape_or_model_are_named(folder, change, complaint):
    """Transformers puts random numbers in the place of the first, and drops the second, here a norm of Qwen3's."""
    changed(folder, change)
    told = fails("eval", folder, "--data", "reference")
    assert complaint in told
    assert "mlp.up_proj" in told or "layers.0.self_attn.q_norm.weight" in told


def test_a_part_that_the_model_has_not_is_told(folder):
    """As a head for drafts, or numbers that older versions stored."""
    more = {"mtp.layers.0.self_attn.q_proj.weight": torch.ones(8, 8)}
    more |= {"model.language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    changed(folder, lambda weights: weights | more)
    with pytest.warns(UserWarning, match=r"holds .*mtp.layers.0.*not used"):
        load_model(str(folder))


def test_code_beside_a_model_is_not_run(folder, tmp_path):
    """Neither is anybody asked at the terminal whether it may be."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    assert "cannot be loaded" in fails("eval", folder, "--data", "reference")
    assert not (tmp_path / "ran").exists()


FEW = ("--samples", 2, "--tuning", 2, "--selection", 2, "--certification", 4, "--proposals", 1)
TINY = ("--questions", 4, "--samples", 2)
SAID = r"logits that are not finite \(NaN or infinite\) for .*'what is \d+\?'"


@pytest.mark.parametrize(
    "words",
    [
        "eval MODEL DATA --plan plan --out out",
        "calibrate MODEL DATA --out out",
        "calibrate MODEL DATA --measure state_cosine --position answer --out out",
        "calibrate MODEL DATA --screen 1 --out out",
        "certify MODEL DATA --plan plan --retention 0.9 --out out",
        "refit MODEL DATA --plan plan --out out",
        "optimize MODEL DATA SIZES --flops 0.6 --no-fitted --out out",
        "optimize MODEL DATA SIZES --flops 0.6 --out out",
        "search MODEL DATA --samples 2 --tuning 2 --selection 2 --certification 4 --flops 0.9 --method dop --out out",
        "table MODEL DATA TINY --method fastv --step answers --work work --out out",
        "experiment v-skip-masks MODEL DATA TINY --seeds 2 --out out",
        "experiment visipruner-lens MODEL DATA TINY --seeds 2 --out out",
    ],
)
def test_logits_that_are_none_name_the_sample(folder, tmp_path, monkeypatch, words):
    """Whatever runs the model; and there is no result."""

    def spoil(weights):
        name = next(name for name in weights if "layers.2.mlp.up_proj" in name)
        return weights | {name: weights[name] * float("nan")}

    monkeypatch.chdir(tmp_path)
    changed(folder, spoil)
    lines = []
    for number in range(16):
        Image.effect_noise((32, 32), 20 + number).convert("RGB").save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": f"what is {number}?", "answer": "x"}))
    Path("data.jsonl").write_text("\n".join(lines))
    geometry = geometry_named(str(folder))
    Plan.full(geometry).at([1], attention=Skip()).save_pretrained("plan")
    given = {"MODEL": (folder,), "DATA": ("--data", "data.jsonl"), "SIZES": FEW, "TINY": TINY}
    told = CliRunner().invoke(app, [str(a) for word in words.split() for a in given.get(word, (word,))])
    assert told.exit_code == 2, told.output
    sentence = told.stderr.strip().splitlines()[-1]
    assert re.search(SAID, sentence), told.stderr
    assert "Traceback" not in told.stderr
    out = Path("out")
    assert not out.is_file()
    assert not [*out.glob("plan/*"), *out.glob("*.safetensors"), *out.glob("**/v*.json")]


def test_a_pickle_is_not_loaded(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "model.safetensors" in fails("eval", folder, "--data", "reference")


def test_tied_and_published_names_are_no_missing_weights(folder):
    """What shares its numbers with another tensor is stored once; what vLLM wants renamed is known to transformers."""
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    changed(folder, lambda weights: {name: w for name, w in weights.items() if "lm_head" not in name})
    assert any("vision_tower.vision_model." in name for name in load_file(folder / "model.safetensors"))
    model = load_model(str(folder)).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_cause_is_named_and_kept(folder, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00 GiB free.")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ModelError, match=r"OutOfMemoryError: CUDA out of memory\..* GPU 0 has 1.00 GiB free") as caught:
        load_model(str(folder))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"model_type": "llava", "text_config": 3}'])
def test_configurations_that_are_none(folder, content):
    (folder / "config.json").write_text(content)
    assert "cannot be loaded" in fails("eval", folder, "--data", "reference")


@pytest.mark.parametrize(
    ("name", "line", "complaint"),
    [
        ("llava", {"question": "is <image> one?", "answer": ""}, "line 2: the question holds '<image>', which"),
        (
            "qwen2_vl",
            {"question": "is <|video_pad|> one?", "answer": ""},
            "line 2: the question holds '<|video_pad|>', which",
        ),
        ("qwen2_vl", {"image": "thin.png", "question": "?", "answer": ""}, "line 2: the processor of"),
    ],
)
def test_a_sample_that_a_model_cannot_take_is_named(folder_of, no_torchvision, tmp_path, name, line, complaint):
    Image.new("RGB", (3000, 2)).save(tmp_path / "thin.png")
    good = {"question": "what?", "answer": ""}
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, (good, line, good))))
    told = fails("eval", folder_of(name), "--data", tmp_path / "data.jsonl", "--max-new-tokens", 1)
    assert complaint in told
    assert "data.jsonl, line 2" in told


def test_a_question_that_is_no_text(reference):
    [sample] = load_data("reference", limit=1)
    with pytest.raises(DataError, match="half a surrogate pair"):
        reference.inputs([Sample(sample.images, "what \udcff?", "")])
