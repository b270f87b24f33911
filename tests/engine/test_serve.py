"""``lookless serve`` with one and with two engines, under a plan with fitted cells: chats with images, and what is told
on ``/metrics``."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from checkpoints import CHECKPOINTS, IMAGE, LAYERS, VOCABULARY, WORDS
from engines import CLOSE, IDLE_S, TOKENS, environment, fitted_plan
from lookless.bench.vllm_server import running
from prompts import Prompt, noise
from stock import Reference

#: (texts, images between them)
CHATS = [
    (["What is it?", ""], [(56, 56, 1)]),
    (["And this, ", "? ", " or that?"], [(56, 56, 2), (56, 56, 3)]),
    (["No picture."], []),
    (["", "first"], [(56, 56, 4)]),
    (["What is it?", ""], [(56, 56, 5)]),
    (["Again: ", ""], [(56, 56, 6)]),
]
OPTIONS = {
    "--dtype": "float32",
    "--max-model-len": "512",
    "--max-num-seqs": "4",
    "--max-num-batched-tokens": "64",
    "--block-size": "32",
    "--kv-cache-memory-bytes": str(2**26),
    "--max-logprobs": "-1",
    "--limit-mm-per-prompt": '{"image": 2}',
}


@pytest.fixture(scope="module", params=(1, 2))
def served(request: Any, tmp_path_factory: Any) -> Any:
    """How many engines, and the address, reference and plan of a server that is ready."""
    folder = tmp_path_factory.mktemp("served")
    engines = request.param
    model = CHECKPOINTS["llava"].save(folder / "model")
    reference = Reference(model)
    plan = fitted_plan(reference.geometry)
    plan.save_pretrained(folder / "plan")
    options = [word for pair in OPTIONS.items() for word in pair]
    options += ["--enforce-eager", "--data-parallel-size", str(engines)]
    words = [sys.executable, "-m", "lookless", "serve", str(model), "--plan", str(folder / "plan"), *options]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        with running("lookless", words, folder / "log") as server:
            yield engines, server.address, reference, plan


def _content(texts: list[str], images: list[tuple[int, int, int]], kind: str = "png") -> list[dict[str, Any]]:
    """In the words of the OpenAI API."""
    content: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}]
    for text, image in zip(texts[1:], images, strict=True):
        file = io.BytesIO()
        noise(*image).save(file, kind)
        address = f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
        content += [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": text}]
    return [part for part in content if part.get("text") != ""]


def _asked(address: str, body: dict[str, Any], **headers: str) -> tuple[int, str]:
    """The status of a chat, and what is told."""
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        answer = urllib.request.urlopen(request, timeout=IDLE_S)
        return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        return problem.code, problem.read().decode()


def _chat(address: str, content: list[dict[str, Any]], engine: int) -> dict[str, Any]:
    """The answer of one engine: vLLM's own choice depends on which of them is faster."""
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": VOCABULARY,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
        "allowed_token_ids": WORDS,
    }
    headers = {"Content-Type": "application/json", "X-data-parallel-rank": str(engine)}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request, timeout=IDLE_S))


def _logprobs(answer: dict[str, Any]) -> torch.Tensor:
    steps = answer["choices"][0]["logprobs"]["content"]
    told = torch.full((len(steps), VOCABULARY), torch.nan)
    for i, step in enumerate(steps):
        for word in step["top_logprobs"]:
            told[i, int(word["token"].removeprefix("token_id:"))] = word["logprob"]
    return told


def _metrics(address: str, name: str) -> dict[str, float]:
    """Values by labels."""
    text = urllib.request.urlopen(f"{address}/metrics", timeout=IDLE_S).read().decode()
    return {m[1]: float(m[2]) for m in re.finditer(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)}


def test_chats(served):
    engines, address, reference, plan = served
    with ThreadPoolExecutor(len(CHATS)) as pool:
        chats = enumerate(_content(*chat) for chat in CHATS)
        answers = list(pool.map(lambda chat: _chat(address, chat[1], chat[0] % engines), chats))
    visual = 0
    for (texts, images), answer in zip(CHATS, answers, strict=True):
        parts = [{"type": "text", "text": texts[0]}]
        for text in texts[1:]:
            parts += [{"type": "image"}, {"type": "text", "text": text}]
        chat = [{"role": "user", "content": [part for part in parts if part.get("text") != ""]}]
        text = reference.processor.apply_chat_template(chat, add_generation_prompt=True)
        ids, logprobs = reference.logprobs(Prompt(text, images), answer["choices"][0]["token_ids"], plan)
        assert ids == answer["prompt_token_ids"]
        torch.testing.assert_close(_logprobs(answer), logprobs, atol=CLOSE, rtol=0)
        visual += ids.count(IMAGE)

    finished = _metrics(address, "vllm:request_success_total")
    answered = {re.search(r'engine="(\d+)"', labels)[1] for labels, count in finished.items() if count}
    assert len(answered) == engines, "every engine was to answer"
    rows = _metrics(address, "lookless_visual_rows_total")
    for operator in ("attention", "ffn"):
        skipped, computed = (rows[f'kind="{kind}",operator="{operator}"'] for kind in ("skipped", "computed"))
        assert skipped + computed == visual * LAYERS, "the rows of every engine were to be told"
        assert skipped >= visual * sum(not getattr(row, operator).is_full for row in plan.layers)


def test_log_probabilities_of_a_prompt_with_an_image_are_refused(served):
    _, address, *_ = served

    def status(content: list[dict[str, Any]]) -> tuple[int, str]:
        messages = [{"role": "user", "content": content}]
        return _asked(address, {"messages": messages, "max_tokens": 1, "prompt_logprobs": 1})

    code, text = status(_content(["What is it?", ""], [(56, 56, 5)]))
    assert code == 400, text
    assert "prompt_logprobs of a prompt with an image" in text
    code, text = status(_content(["No image."], []))
    assert code == 200, text


def test_what_vlmevalkit_sends(served):
    """With ``--base-url``: JPEG before text, a key, and as many tokens as ``--max-tokens`` says."""
    _, address, *_ = served
    [model] = json.load(urllib.request.urlopen(f"{address}/v1/models", timeout=IDLE_S))["data"]
    messages = [{"role": "user", "content": _content(["", "What is it?"], [(56, 56, 1)], "jpeg")}]
    body = {"model": model["id"], "messages": messages, "n": 1, "max_tokens": TOKENS, "temperature": 0.0}
    code, text = _asked(address, body, Authorization="Bearer sk-admin")
    assert code == 200, text
    [choice] = json.loads(text)["choices"]
    assert isinstance(choice["message"]["content"], str)
    code, text = _asked(address, body | {"max_tokens": 2**15}, Authorization="Bearer sk-admin")
    assert code == 400, text  # its default, of a model with a context of 512
    assert "max_tokens" in text
