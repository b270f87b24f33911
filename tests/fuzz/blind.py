"""Readers of files given valid files with something changed, at random: each is read, or refused with an error of ours.

python tests/fuzz/blind.py plan --inputs 100000 --seed 1
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from mutations import mutated, scrambled
from seeds import SEEDS
from targets import READERS, trial


def inputs(seeds: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """All of ``seeds``, and ``count`` changed ones, of the first most often."""
    yield from seeds
    rng = random.Random(seed)
    for _ in range(count):
        content = seeds[0] if rng.random() < 0.7 else rng.choice(seeds)
        made = mutated(content, rng) if rng.random() < 0.8 else None
        yield scrambled(content, rng) if made is None else made


def run(name: str, count: int, seed: int, folder: Path) -> int:
    """How many files the reader ``name`` reads, of those that are kept and ``count`` more; ``folder`` is for them."""
    corpus = sorted((Path(__file__).parent / "corpus" / name).glob("*"))
    seeds = [SEEDS[name](), *(path.read_bytes() for path in corpus)]
    with trial(name, folder) as is_read:
        return sum(is_read(content) for content in inputs(seeds, count, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        read = run(given.reader, given.inputs, given.seed, Path(folder))
    print(f"{given.reader}: {given.inputs} inputs, of which {read} were read, and the others refused in a sentence")


if __name__ == "__main__":
    main()
