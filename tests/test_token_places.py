"""Grids of visual tokens, against the models themselves: a spot in the picture moves the token that lies there."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from helpers.families import FAMILIES
from helpers.models import IMAGE
from lookless.calibration.token_places import grids_of
from lookless.data import Sample

CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
}
PINPOINTS = {"image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]], "size": {"shortest_edge": 32}}
QWEN = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 512, "max_pixels": 1600}
TILES = {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "min_patches": 1, "max_patches": 4}
#: family -> settings of its processor, one after the other
PROCESSORS: dict[str, list[dict[str, Any]]] = {
    "llava": [
        CLIP,
        {**CLIP, "size": {"height": 40, "width": 40}},
        {**CLIP, "do_center_crop": False, "size": {"height": 32, "width": 32}},
        {**CLIP, "image_processor_type": "LlavaImageProcessor", "do_pad": True},
    ],
    "llava_next": [{"image_processor_type": "LlavaNextImageProcessor", **PINPOINTS, "crop_size": CLIP["crop_size"]}],
    "llava_onevision": [
        {"image_processor_type": "LlavaOnevisionImageProcessor", **PINPOINTS, "size": {"height": 32, "width": 32}}
    ],
    "qwen2_vl": [{"image_processor_type": "Qwen2VLImageProcessor", **QWEN}],
    "qwen2_5_vl": [{"image_processor_type": "Qwen2VLImageProcessor", **QWEN}],
    "qwen3_vl": [{"image_processor_type": "Qwen2VLImageProcessor", **QWEN}],
    "internvl-qwen2": [{"image_processor_type": "GotOcr2ImageProcessor", **TILES}],
}
CASES = [
    (name, number, size)
    for name, settings in PROCESSORS.items()
    for number in range(len(settings))
    for size in ((96, 96), (160, 80), (80, 144))
]


def blind_to_neighbours(model: Any) -> Any:
    """The towers' attention adds nothing, so that each patch knows of itself alone."""
    for name, parameter in model.named_parameters():
        if "language_model" not in name and name.endswith(
            ("out_proj.weight", "attn.proj.weight", "projection_layer.weight", "out_proj.bias", "attn.proj.bias")
        ):
            parameter.data.zero_()
    return model


def features(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What the visual tokens of one prompt are, ``[visual, hidden]``."""
    with torch.no_grad():
        found = model.model.get_image_features(**inputs)
    found = getattr(found, "pooler_output", found)
    pieces = found if isinstance(found, torch.Tensor) else torch.cat([*found])
    return pieces.reshape(-1, pieces.shape[-1])


@pytest.mark.parametrize(("name", "number", "size"), CASES)
def test_a_spot_moves_the_token_that_lies_there(name, number, size, tmp_path):
    settings = PROCESSORS[name][number]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    model = blind_to_neighbours(FAMILIES[name].build())
    model.model.config.image_grid_pinpoints = settings.get("image_grid_pinpoints")
    plain = Image.fromarray(np.full((size[1], size[0], 3), 128, np.uint8))

    def seen(image: Image.Image) -> tuple[dict[str, Any], torch.Tensor]:
        made = dict(processor(images=[image], return_tensors="pt"))
        wanted = {k: v for k, v in made.items() if k in ("pixel_values", "image_sizes", "image_grid_thw")}
        return wanted, features(model, wanted)

    inputs, before = seen(plain)
    inputs["input_ids"] = torch.cat((torch.tensor([1, 2]), torch.full((len(before),), IMAGE), torch.tensor([3])))[None]
    loaded = SimpleNamespace(model=model, processor=SimpleNamespace(image_processor=processor))
    grids = grids_of(loaded, Sample((plain,), "q", ""), inputs)
    assert grids, "its layout is not known"
    tried = 0
    for grid in grids:
        left, top, right, bottom = grid.box
        for row in range(grid.rows):
            for column in range(grid.columns):
                x = (left + (right - left) * (column + 0.5) / grid.columns) * size[0]
                y = (top + (bottom - top) * (row + 0.5) / grid.rows) * size[1]
                if not (2 <= x < size[0] - 2 and 2 <= y < size[1] - 2):
                    continue  # padding
                spotted = np.array(plain)
                spotted[round(y) - 2 : round(y) + 2, round(x) - 2 : round(x) + 2] = (255, 0, 60)
                _, after = seen(Image.fromarray(spotted))
                moved = (after - before).norm(dim=-1)
                mine = torch.zeros(len(moved), dtype=torch.bool)
                for other in grids:  # the other level is moved, too
                    if other.level == grid.level:
                        mine[other.first : other.first + (other.rows - 1) * other.step + other.columns] = True
                assert int(moved.where(mine, moved.new_zeros(())).argmax()) == grid.first + row * grid.step + column
                tried += 1
    assert tried >= 0.5 * len(before)


def test_an_unknown_layout_has_no_grids():
    model = FAMILIES["llava"].build()
    ids = torch.cat((torch.tensor([1]), torch.full((15,), IMAGE), torch.tensor([2])))[None]
    loaded = SimpleNamespace(model=model, processor=SimpleNamespace(image_processor=None))
    sample = Sample((Image.new("RGB", (8, 8)),), "q", "")
    assert grids_of(loaded, sample, {"input_ids": ids}) == ()  # 15 is no square
    assert grids_of(loaded, Sample((), "q", ""), {"input_ids": ids}) == ()  # tokens of a picture that is not there
