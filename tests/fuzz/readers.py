"""Readers of files under a coverage-guided fuzzer: any bytes are read, or refused with an error of ours.

    pip install atheris
    python tests/fuzz/readers.py plan --inputs 100000

Inputs that reach new lines are kept in ``tests/fuzz/corpus/READER``, and the next run begins with them. An input that
is neither read nor refused ends the run with its traceback, and is left as ``crash-...`` in the working folder.
``blind.py`` tries inputs without looking at what they reach: many times as many.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
from mutations import mutated

with atheris.instrument_imports(include=["lookless"]):
    from seeds import SEEDS
    from targets import READERS, trial

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many")
    parser.add_argument("--seconds", type=int, default=0, help="at most; 0: as long as it takes")
    given = parser.parse_args()
    warnings.simplefilter("ignore")

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        made = mutated(content, rng) if rng.random() < 0.7 else None
        return atheris.Mutate(content, most) if made is None or len(made) > most else made

    corpus = CORPUS / given.reader
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes(SEEDS[given.reader]())
    started = trial(given.reader, Path(tempfile.mkdtemp()))
    is_read = started.__enter__()  # to the end of the process: atheris does not come back

    def one(content: bytes) -> None:
        is_read(content)

    limits = [f"-runs={given.inputs}", f"-max_total_time={given.seconds}", "-max_len=8192", "-timeout=20"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
