"""Importing and using the library leaves the state of the process as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SCRIPT = """
import json, os, random, sys, tempfile
import numpy, rich.progress, torch, transformers
import torch._inductor.compile_fx  # these set and draw things of their own when they are imported
from huggingface_hub import utils as hub
from transformers.utils import logging

def state():
    umask = os.umask(0)
    os.umask(umask)
    return {
        "umask": umask,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "random": repr(random.getstate()),
        "numpy": repr(numpy.random.get_state()[1:3]),
        "torch": torch.get_rng_state().tolist(),
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "verbosity": logging.get_verbosity(),
        "bars": logging.is_progress_bar_enabled(),
        "hub bars": hub.are_progress_bars_disabled(),
    }

torch.rand(3)
before = state()
import lookless
from lookless import configs
from lookless.bench import dummy_model, time_prefill

loaded = lookless.load_model("reference")
data = lookless.load_data("reference:chart", split="calibration", limit=1)
plan = lookless.v_skip(lookless.calibrate(loaded, data, progress=False), layers=3)
plan |= lookless.methods.random_tokens(12)
plan.save_pretrained(tempfile.mkdtemp())
lookless.evaluate(loaded, data, plan, max_new_tokens=2, progress=False)
with lookless.apply(loaded.model, plan), lookless.trace(loaded.model):
    loaded.answer(data.items, max_new_tokens=1)
shape = configs.shape_named("reference").cut(2)
dummy = dummy_model.make_dummy_model(shape, dtype=torch.bfloat16)
assert dummy.model.dtype == torch.bfloat16
time_prefill(dummy.model, dummy.inputs(visual=4, before=2, after=2, batch=1), [None], repeats=2)
after = state()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


def test_nothing_is_left_behind():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
