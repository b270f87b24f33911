"""transformers' own tensor parallelism (``tp_plan="auto"``) under a plan: two processes answer as one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from helpers.families import FAMILIES
from lookless import Filter, Keep, Neurons, Plan, Skip, apply
from lookless.errors import ModelError

pytest.importorskip("accelerate")
TOLERANCE = 1e-4  # of log-probabilities, float32

CELLS = {
    "skip": {"attention": Skip(), "ffn": Skip()},
    "half of them": {"keep": Keep(0.5, rank="diversity")},
}
REFUSED = {
    "ranks by last_query_attention": {"keep": Keep(0.5, rank="last_query_attention")},
    "ranks by value_aware": {"keep": Filter()},
    "picks neurons": {"ffn": Neurons(0.5)},
}
KINDS = ("one image", "padded left")


def plans(layers: int) -> dict[str, Plan]:
    return {name: Plan.full(layers).at([1, 3], **cells) for name, cells in CELLS.items()}


@torch.no_grad()
def answers(model, family) -> dict[str, torch.Tensor]:
    """Log-probabilities of text rows under every plan, and greedy tokens."""
    found = {}
    for kind in KINDS:
        arguments = family.batch(kind)
        text = arguments["attention_mask"].bool() & ~torch.isin(arguments["input_ids"], torch.tensor(family.visual_ids))
        for name, plan in plans(len(model.model.language_model.layers)).items():
            with apply(model, plan):
                found[f"{kind}, {name}"] = model(**arguments).logits[text].log_softmax(-1)
                found[f"{kind}, {name}, tokens"] = model.generate(
                    **arguments, max_new_tokens=3, do_sample=False, pad_token_id=0
                )
    return found


@pytest.mark.parametrize(
    "name", ["llava", "qwen2_5_vl", "internvl-qwen3"]
)  # transformers has no such plan for Qwen3-VL
def test_two_processes_answer_as_one(name, tmp_path):
    family = FAMILIES[name]
    model = family.build()
    model.save_pretrained(tmp_path / "model")
    expected = answers(model, family)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    shared["PYTHONPATH"] = os.pathsep.join(sys.path)
    words = [sys.executable, __file__, name, str(tmp_path)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ranks = ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    processes = [subprocess.Popen(words, env=environment, **output) for environment in ranks]
    try:
        told = [process.communicate(timeout=1800)[0].decode()[-2000:] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        assert got.pop("sharded")
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            if "tokens" in key:
                assert torch.equal(got[key], value), key
            else:
                assert (got[key] - value).abs().max() <= TOLERANCE, key


def main() -> None:
    """One of the processes."""
    name, folder = sys.argv[1:]
    family, rank = FAMILIES[name], os.environ["RANK"]
    kind = type(family.build())
    model = kind.from_pretrained(f"{folder}/model", tp_plan="auto").eval()
    attention, config = model.model.language_model.layers[0].self_attn, model.config.get_text_config()
    weight, whole = attention.q_proj.weight, config.num_attention_heads * attention.head_dim
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    for told, cells in REFUSED.items():  # each process would choose by its own heads
        with pytest.raises(ModelError, match=told):
            apply(model, Plan.full(len(model.model.language_model.layers)).at([1], **cells))
    found: dict[str, object] = {"sharded": local.shape[0] < whole, **answers(model, family)}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
