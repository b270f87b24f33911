"""Readers of files under a coverage-guided fuzzer: any bytes are read, or refused with an error of ours.

    pip install atheris
    python tests/fuzz/readers.py plan --inputs 100000

Inputs that reach new lines are kept in ``tests/fuzz/corpus/READER``, and the next run begins with them. An input that
is neither read nor refused ends the run with its traceback, and is left as ``crash-...`` in the working folder.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris
from mutations import mutated

with atheris.instrument_imports(include=["lookless"]):
    from lookless import Plan, Scores
    from lookless.answers import Answer
    from lookless.certification.logged import read_logged
    from lookless.data import load_data
    from lookless.data.images import load_image
    from lookless.errors import LooklessError
    from lookless.evaluation import Evaluation
    from lookless.files import load
    from lookless.optimize.folder import Run
    from lookless.pages.reading import read
    from lookless.routing import PlanSet
    from lookless.search.front import Front
    from lookless.weights import unpack

from seeds import SEEDS

CORPUS = Path(__file__).parent / "corpus"
#: The name of a reader's file, and what reads it.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "plan": ("lookless_plan.json", lambda path: str(Plan.from_pretrained(path).live())),
    "scores": ("scores.json", lambda path: Scores.load(path).lowest(1)),
    "jsonl": ("data.jsonl", lambda path: len(load_data(str(path)))),
    "csv": ("data.csv", lambda path: len(load_data(str(path)))),
    "answer": ("answer.json", lambda path: load(path, Answer, LooklessError, 1)),
    "evaluation": ("evaluation.json", lambda path: load(path, Evaluation, LooklessError, 1)),
    "set": ("planset.json", lambda path: PlanSet.from_pretrained(path.parent)),
    "run": ("run.json", lambda path: Run.load(path.parent)),
    "front": ("front.json", lambda path: Front.load(path)),
    "fitted": ("lookless_fitted.safetensors", lambda path: unpack(path.read_bytes(), "it")),
    "log": ("1_samples_vqa.jsonl", lambda path: read_logged(path)),
    "page": ("any.json", lambda path: read([path])),
    "image": ("image.png", load_image),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many")
    parser.add_argument("--seconds", type=int, default=0, help="at most; 0: as long as it takes")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    name, reader = READERS[given.reader]
    path = Path(tempfile.mkdtemp()) / name

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            reader(path)
        except LooklessError as refused:
            if not str(refused).strip():
                raise ValueError("an error without a sentence") from refused

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        made = mutated(content, rng) if rng.random() < 0.7 else None
        return atheris.Mutate(content, most) if made is None or len(made) > most else made

    corpus = CORPUS / given.reader
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes(SEEDS[given.reader]())
    limits = [f"-runs={given.inputs}", f"-max_total_time={given.seconds}", "-max_len=8192", "-timeout=20"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
