"""What the bench's tests time: a decoder of real shape in small, and the tokens of a prompt."""

from __future__ import annotations

from helpers.models import LAYERS
from lookless import Geometry

SMALL = Geometry(model_type="qwen3_vl", layers=LAYERS, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16)
V, BEFORE, AFTER = 40, 5, 7  # visual tokens, and text before and after them
