"""How often do the tests of ``lookless compare`` err, and what do they find? Answers drawn from a known truth.

``python benchmarks/compare.py`` takes a few minutes on one core, and prints the tables of docs/compare.md. Questions
about one image differ together: where the plan changes an answer, it changes all answers about that image the same way.
Both sides' answers are right or wrong. Beside the tests of lookless are those that one would take without: McNemar's
where questions share images, a paired t-test (as lmms-eval's ``--baseline``), and the bootstrap.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import binomtest, ttest_1samp

from lookless.certification.differences import Pairs
from lookless.certification.margin import Counts, Sums

ALPHA = 0.05
#: Images, questions about each, and the share of answers that differ.
SETS = ((60, 1, 0.03), (300, 1, 0.03), (1000, 1, 0.1), (100, 3, 0.1), (200, 5, 0.1))
MARGIN = 0.02


def drawn(rng: np.random.Generator, images: int, lost: float, won: float) -> np.ndarray:
    """Of each image, whether its answers are lost (1), won (-1), or the same."""
    return np.asarray(rng.choice([1, -1, 0], images, p=[lost, won, 1 - lost - won]))


def pairs(effect: np.ndarray, each: int, grouped: bool) -> Pairs:
    """All answers, right where neither side loses them."""
    mine = np.repeat((effect >= 0).astype(float), each)
    others = np.repeat((effect <= 0).astype(float), each)
    return Pairs(mine, others, np.repeat(np.arange(len(effect)), each) if grouped else None)


def t_test(effect: np.ndarray, each: int, margin: float, alternative: str) -> bool:
    losses = np.repeat(effect, each)
    return bool(losses.std() > 0 and ttest_1samp(losses, margin, alternative=alternative).pvalue <= ALPHA)


def bootstrapped(effect: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether a one-sided bootstrap bound on the loss is under the margin; whole images are drawn."""
    means = effect[rng.integers(0, len(effect), (400, len(effect)))].mean(axis=1)
    return bool(np.quantile(means, 1 - ALPHA) < MARGIN)


DIFFERENCE: Mapping[str, Callable[[np.ndarray, int, np.random.Generator], bool]] = {
    "lookless": lambda e, each, rng: pairs(e, each, grouped=True).p_value() <= ALPHA,
    "McNemar": lambda e, each, rng: pairs(e, each, grouped=False).p_value() <= ALPHA,
    "t-test": lambda e, each, rng: t_test(e, each, 0, "two-sided"),
}
LESS: Mapping[str, Callable[[np.ndarray, int, np.random.Generator], bool]] = {
    "lookless": lambda e, each, rng: pairs(e, each, grouped=True).margin_test().p_value(MARGIN, 1 - ALPHA) <= ALPHA,
    "betting": lambda e, each, rng: Sums(e * each, np.full(len(e), each)).p_value(MARGIN, 1 - ALPHA) <= ALPHA,
    "exact": lambda e, each, rng: (
        Counts(each * int((e > 0).sum()), each * int((e < 0).sum()), each * len(e)).p_value(MARGIN, 1 - ALPHA) <= ALPHA
    ),
    "t-test": lambda e, each, rng: t_test(e, each, MARGIN, "less"),
    "bootstrap": lambda e, each, rng: bootstrapped(e, rng),
}


def rates(tests: Mapping[str, Callable[..., bool]], loss: float, runs: int) -> list[tuple[str, list[str]]]:
    """Of each set, how often each test finds something where the true loss is ``loss``."""
    rows = []
    for images, each, differ in SETS:
        rng = np.random.default_rng(0)
        draws = [drawn(rng, images, (differ + loss) / 2, (differ - loss) / 2) for _ in range(runs)]
        cells = [_share(sum(test(one, each, rng) for one in draws), runs) for test in tests.values()]
        rows.append((f"| {images} | {each} | {differ:.0%} |", cells))
    return rows


def _share(count: int, runs: int) -> str:
    interval = binomtest(count, runs).proportion_ci()
    return f"{count / runs:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def show(title: str, names: Sequence[str], rows: list[tuple[str, list[str]]]) -> None:
    print(f"\n{title}\n\n| images | questions each | answers differ | {' | '.join(names)} |")
    for head, cells in rows:
        print(f"{head} {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    show("Equals called different", [*DIFFERENCE], rates(DIFFERENCE, 0.0, runs))
    show("A loss of 2 points found", [*DIFFERENCE], rates(DIFFERENCE, MARGIN, runs))
    show(f"A loss of {MARGIN:.0%} called less", [*LESS], rates(LESS, MARGIN, runs))
    show(f"No loss called less than {MARGIN:.0%}", [*LESS], rates(LESS, 0.0, runs))


if __name__ == "__main__":
    main()
