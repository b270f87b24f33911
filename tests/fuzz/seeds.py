"""A valid file of each kind, from which the fuzzer begins."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from lookless import Geometry, Keep, Plan, Scores, Skip, Top, Window
from lookless.answers import Answer
from lookless.optimize.folder import Part, Run, Target, TaskData
from lookless.routing import PlanSet, planset
from lookless.routing.centroids import Belief, Centroids
from lookless.routing.planset import Manifest, Task
from lookless.search.front import Candidate, Front
from lookless.weights import Weights, pack

GEOMETRY = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": 3})
PLAN = (
    Plan.full(GEOMETRY)
    .at([1], attention=Skip(), ffn=Top(0.5, rank="random"))
    .at([2], keep=Keep(0), attention=Window(4))
)
LINE = {"question": "how many?", "answer": ["3", "three"], "id": "7", "task": "counting"}
TURNS = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}]}], "answer": "a"}
LOGGED = {"doc_id": 1, "target": "a", "input": "what?", "filtered_resps": ["a"], "doc_hash": "x", "anls": 1.0}


def _evaluation() -> dict:
    answer = Answer(question="?", expected="a", dense="a", plan="b", dense_score=1, plan_score=0)
    estimate = {"value": 1.0, "low": 0.5, "high": 1.0}
    return {"model": "m", "data": "d", "samples": 1, "accuracy_dense": estimate, "answers": [answer.model_dump()]}


def plan_set() -> PlanSet:
    """Its folder has more files than the one that is changed."""
    ones, one = np.ones(2), np.ones(1)
    centroids, belief = Centroids(ones, ones, np.eye(2)[:, :1], one, one, np.ones((1, 1))), Belief(one, one, 0.5)
    task = Task(name="a", data="d", data_hash="x", sample_hashes=("y",), right=1, wrong=0, fell_back=0)
    numbers = planset._hash(planset._numbers(centroids, belief))
    manifest = Manifest(model="m", embeddings="x", tokenizer="y", doubt=0.1, tasks=(task,), numbers=numbers)
    return PlanSet(manifest, {"a": PLAN}, PLAN, centroids, belief)


def _run() -> Run:
    part = Part(hash="x", sample_hashes=("y",))
    parts = dict.fromkeys(("calibration", "tuning", "selection", "certification"), part)
    data = TaskData(task="chart", data="reference:chart", **parts)
    return Run(model="m", geometry=GEOMETRY, data=(data,), target=Target(kind="flops", value=0.5))


def _front() -> Front:
    one = Candidate(
        plan=PLAN, kept=0.5, distance=0.1, by_task={"a": 0.1}, risk=0.1, fidelity=0.9, found_by="x", time=None
    )
    return Front(provenance=PLAN.provenance, evaluations=1, seconds=1.0, price="kept", tasks=("a",), candidates=(one,))


def _image() -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(held, "PNG")
    return held.getvalue()


def _lines(*rows: dict) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


SEEDS = {
    "plan": lambda: PLAN.to_json().encode(),
    "scores": lambda: (
        Scores(name="ffn_effect", per_sample=((0.1, 0.2, 0.3),), geometry=GEOMETRY).model_dump_json().encode()
    ),
    "jsonl": lambda: _lines({"question": "what?", "answer": "a"}, LINE, TURNS),
    "csv": lambda: b'question,answer,id\n"what, now?",a,1\nand?,b,2\n',
    "answer": lambda: json.dumps(_evaluation()["answers"][0]).encode(),
    "evaluation": lambda: json.dumps(_evaluation()).encode(),
    "set": lambda: plan_set().manifest.model_dump_json().encode(),
    "run": lambda: _run().model_dump_json().encode(),
    "front": lambda: _front().model_dump_json().encode(),
    "fitted": lambda: pack([Weights.of([0.5, 1.0], [[1.0, 2.0]], [[1.0], [2.0]])]),
    "log": lambda: _lines(LOGGED, {**LOGGED, "doc_id": 2, "anls": {"score": 0.5}}),
    "page": lambda: PLAN.to_json().encode(),
    "image": _image,
}
