"""Copies of the schemas of ten data sets, filled with the images and questions of the reference suite.

Each is a data set on disk with the columns that lmms-eval's own task reads, and a YAML file that includes that task and
names other data: prompts, filters and metrics are those of the real set.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import lmms_eval.tasks

from lookless.reference import question

TASKS = Path(lmms_eval.tasks.__file__).parent
ROWS = 4
LETTERS = "ABCD"


@dataclass(frozen=True)
class Schema:
    """One data set.

    Attributes:
        yaml: lmms-eval's task, below its folder of tasks.
        split: that the task reads.
        row: the columns of one row, by its number.
        metrics: what the task reports.
        more: what else the copy has to say otherwise than the task.
    """

    yaml: str
    split: str
    row: Callable[[int], dict[str, Any]]
    metrics: tuple[str, ...]
    more: dict[str, Any] = field(default_factory=dict)


def pope(i: int) -> dict[str, Any]:
    image, asked, answer = question("existence", "test", i)
    return {
        "id": str(i),
        "question_id": str(i),
        "question": asked,
        "answer": answer,
        "image_source": f"reference_{i}",
        "image": image,
        "category": "adversarial",
    }


def gqa(i: int) -> dict[str, Any]:
    image, asked, answer = question("spatial", "test", i)
    return {"id": str(i), "imageId": str(i), "question": asked, "answer": answer, "image": image}


def mme(i: int) -> dict[str, Any]:
    """A pair of questions has one id."""
    image, asked, answer = question("existence", "test", i)
    asked = f"{asked} Please answer yes or no."
    return {
        "question_id": f"{i // 2}.png",
        "image": image,
        "question": asked,
        "answer": answer,
        "category": "existence",
    }


def _choices(i: int) -> tuple[Any, str, list[str], int]:
    """A question, four choices, and which is right."""
    image, asked, answer = question("chart", "test", i)
    others = [word for word in ("1", "2", "red", "green", "blue") if word != answer][:3]
    right = i % 4
    return image, asked, [*others[:right], answer, *others[right:]], right


def mmbench(i: int) -> dict[str, Any]:
    image, asked, choices, right = _choices(i)
    return {
        "index": i,
        "question": asked,
        "hint": "nan",
        "answer": LETTERS[right],
        **dict(zip(LETTERS, choices, strict=True)),
        "category": "attribute_recognition",
        "L2-category": "finegrained_perception (instance-level)",
        "source": "reference",
        "split": "dev",
        "comment": "nan",
        "image": image,
    }


def scienceqa(i: int) -> dict[str, Any]:
    image, asked, choices, right = _choices(i)
    return {"image": image, "question": asked, "choices": choices, "answer": right, "hint": "It is a chart." * (i % 2)}


def ai2d(i: int) -> dict[str, Any]:
    image, asked, choices, right = _choices(i)
    return {"question": asked, "options": choices, "answer": str(right), "image": image}


def vizwiz(i: int) -> dict[str, Any]:
    image, asked, answer = question("text", "test", i)
    return {
        "question_id": f"VizWiz_val_{i}",
        "image": image,
        "question": asked,
        "answers": [answer] * 9 + ["unanswerable"],
        "category": "other",
    }


def ocrbench(i: int) -> dict[str, Any]:
    image, asked, answer = question("text", "test", i)
    return {
        "dataset": "IIIT5K",
        "question": asked,
        "question_type": "Regular Text Recognition",
        "answer": [answer],
        "image": image,
    }


def mmmu(i: int) -> dict[str, Any]:
    """Of two rows one is open."""
    image, asked, choices, right = _choices(i)
    is_open = i % 2
    return {
        "id": f"validation_Art_{i}",
        "question": f"<image 1> {asked}",
        "options": repr([] if is_open else choices),
        "explanation": "",
        "image_1": image,
        **{f"image_{n}": None for n in range(2, 8)},
        "img_type": "['Charts']",
        "answer": choices[right] if is_open else LETTERS[right],
        "topic_difficulty": "Easy",
        "question_type": "open" if is_open else "multiple-choice",
        "subfield": "Art",
    }


def chartqa(i: int) -> dict[str, Any]:
    image, asked, answer = question("chart", "test", i)
    return {"type": ("human_test", "augmented_test")[i % 2], "question": asked, "answer": answer, "image": image}


POPE = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio")
CHARTQA = ("relaxed_overall", "relaxed_human_split", "relaxed_augmented_split")
SCHEMAS = {
    "pope": Schema("pope/pope.yaml", "test", pope, POPE),
    # The real task joins rows and images, which are two sets on the hub; a copy's rows have theirs.
    "gqa": Schema("gqa/gqa.yaml", "testdev", gqa, ("exact_match",), {"process_docs": None}),
    "mme": Schema("mme/mme.yaml", "test", mme, ("mme_perception_score",)),
    # `mmbench_en_dev` asks a model of OpenAI which option was meant; this is the same without it.
    "mmbench": Schema("mmbench/mmbench_en_dev_static.yaml", "dev", mmbench, ("gpt_eval_score",)),
    "scienceqa": Schema("scienceqa/scienceqa_img.yaml", "test", scienceqa, ("exact_match",)),
    "ai2d": Schema("ai2d/ai2d.yaml", "test", ai2d, ("exact_match",)),
    "vizwiz": Schema("vizwiz_vqa/vizwiz_vqa_val.yaml", "val", vizwiz, ("exact_match",)),
    "ocrbench": Schema("ocrbench/ocrbench.yaml", "test", ocrbench, ("ocrbench_accuracy",)),
    "mmmu": Schema("mmmu/mmmu_val.yaml", "validation", mmmu, ("mmmu_acc",)),
    "chartqa": Schema("chartqa/chartqa.yaml", "test", chartqa, CHARTQA),
}


def task_of(name: str) -> str:
    """What the copy of a task is called."""
    return f"copy_{name}"


def write(folder: Path) -> None:
    """All copies, for ``--include_path``."""
    for name, schema in SCHEMAS.items():
        data = folder / "data" / name
        rows = datasets.Dataset.from_list([schema.row(i) for i in range(ROWS)])
        datasets.DatasetDict({schema.split: rows}).save_to_disk(str(data))
        task = {
            "include": str(TASKS / schema.yaml),
            "task": task_of(name),
            "dataset_path": str(data),
            "dataset_name": None,
            "dataset_kwargs": {"load_from_disk": True},
            **schema.more,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
