"""Metrics by name: what an answer scores, in [0, 1], against the right answers.

Definitions are those of lmms-eval 0.7 (the task is named in the table), answer by answer, its oddities included, so
that figures can be compared with published ones. ``exact`` and ``numeric`` are our own.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from .errors import LooklessError

#: Scores of an answer against one right answer, or against all of them.
ScoreOne = Callable[[str, str], float]
Score = Callable[[str, Sequence[str]], float]
#: What makes right answers useless for a metric, in words; None if nothing does.
Fault = Callable[[Sequence[str]], "str | None"]


@dataclass(frozen=True)
class Unit:
    """How a figure is told.

    Attributes:
        name: at the head of its column.
        is_share: it is told in per cent; else as the number that it is.
    """

    name: str
    is_share: bool = True

    def said(self, value: float, digits: int = 1) -> str:
        """``87.5%``, or ``1432.1``."""
        return f"{value:.{digits}%}" if self.is_share else f"{value:.{digits}f}"

    def points(self, difference: float) -> str:
        """``-1.5``: in hundredths, if the figures are shares."""
        return f"{100 * difference if self.is_share else difference:+.1f}"


SHARE = Unit("accuracy")
#: Of what the scores of a set come to.
UNITS = {"mean": SHARE, "f1": Unit("F1"), "mme": Unit("score", is_share=False)}


@dataclass(frozen=True)
class Metric:
    """One way of scoring.

    Attributes:
        name: with its setting, if it has one: ``choice:ABCD``.
        score: of an answer and the right ones.
        what: one line for a reader.
        like: tasks of lmms-eval that score so.
        fault: what is wrong with right answers.
        is_graded: scores between 0 and 1 are usual.
        total: the figure of a set: the ``mean`` of its scores; ``f1`` of the answer yes; ``mme``, for which the two
            questions about an image share an ``id`` and the category is the ``task``.
    """

    name: str
    score: Score
    what: str
    like: str = ""
    fault: Fault = lambda right: None
    is_graded: bool = False
    total: Literal["mean", "f1", "mme"] = "mean"

    @property
    def unit(self) -> Unit:
        """Of :attr:`total`."""
        return UNITS[self.total]

    @property
    def kept(self) -> str:
        """What a retention is a share of."""
        return "right answers" if self.total == "mean" and not self.is_graded else self.unit.name

    @property
    def one_by_one(self) -> str:
        """What the scores of single questions are called, whose mean is not the figure where ``total`` is another."""
        return self.name if self.total == "mean" else f"{self.name}, question by question"


def best(score: ScoreOne) -> Score:
    """The score against the right answer that fits best."""
    return lambda answer, right: max(score(answer, one) for one in right)


def normal(answer: str) -> str:
    """``answer`` as ``exact`` compares it: without outer blanks and a final full stop, in lower case."""
    return answer.strip().removesuffix(".").casefold()


def exact(answer: str, right: str) -> float:
    return float(normal(answer) == normal(right))


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def gqa(answer: str, right: str) -> float:
    a, b = (text.lower().translate(_NO_PUNCTUATION) for text in (answer.strip(), right))
    return float(a == b)


#: Full-width forms of ASCII, and the ideographic space.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def contains(answer: str, right: str) -> float:
    a, b = (text.translate(_HALF_WIDTH).lower().strip().replace("\n", " ") for text in (answer, right))
    return float(b in a)


_SUBJECTS = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
#: Words after which an option's letter comes; the last are Korean, Chinese and Japanese for "the answer is".
_PHRASES = (
    *(f"{the}{subject} is" for subject in _SUBJECTS for the in ("the ", "")),
    *(f"i {verb}" for verb in ("choose", "select", "pick")),
    *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def option(answer: str, letters: str) -> str:
    """The option that ``answer`` chooses, one of ``letters``; empty if it chooses none.

    The surest way of saying it counts: the letter at the beginning, at the end, behind such words as "the answer is",
    then ``(A)``, ``A.``, ``A:``, ``A)``, an ``A`` before a blank, and any ``A`` at all. Of several letters said in the
    same way it is the last.
    """
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    if bare[:1] in [*letters] and not bare[1:2].isalpha():
        return bare[0]
    if bare[-1:] in [*letters] and not bare[-2:-1].isalpha():
        return bare[-1]
    ends = [at + len(phrase) for phrase in _PHRASES if (at := text.lower().find(phrase)) >= 0]
    said = [(text.find(letter, end), letter) for end in ends for letter in letters]
    for form in ("({})", "{}.", "{}:", "{})", "{} ", "{}"):
        if any(at >= 0 for at, _ in said):
            break
        said = [(text.rfind(form.format(letter)), letter) for letter in letters]
    at, letter = max(said, key=lambda pair: pair[0])
    return letter if at >= 0 else ""


_NUMBER = re.compile(r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def number(text: str) -> float | None:
    """The number in ``text``, with or without words around it; None if there is none, or several different ones."""
    found = {float(one.replace(",", "").replace("−", "-")) for one in _NUMBER.findall(text)}
    return found.pop() if len(found) == 1 else None


def _levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and replacements of characters from one to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(before + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def anls(answer: str, right: str) -> float:
    a, b = (" ".join(text.strip().lower().split()) for text in (answer, right))
    longest = max(len(answer.upper()), len(right.upper()))  # of the texts as they are, as Qwen-VL's evaluation has it
    likeness = 1 - (_levenshtein(a, b) / longest if longest else 0.0)
    return likeness if likeness >= 0.5 else 0.0


def _chart_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(answer: str, right: str) -> float:
    a, b = _chart_number(answer), _chart_number(right)
    if a is None or not b:  # nothing is within 5 % of 0
        return float(answer.lower() == right.lower())
    return float(abs(a - b) / abs(b) <= 0.05)


#: As the official VQA evaluation writes contractions; it corrects a word that lacks one of the apostrophes.
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're "
    "why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
_WHOLE = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS.split() for at, mark in enumerate(word) if mark == "'"
} | {"somebody'd": "somebodyd"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(n) for n, word in enumerate(_NUMBERS)} | {"none": "0"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def _vqa_words(text: str) -> str:
    """Without punctuation and articles, in lower case, numbers up to ten as digits."""
    joined = bool(re.search(r"\d,+\d", text))  # a thousands separator: then no mark becomes a blank
    plain = text
    for mark in _MARKS:
        plain = plain.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=32)  # the official evaluation's flag is its count
    words = [_DIGITS.get(word, word) for word in plain.lower().split()]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in ("a", "an", "the"))


def _vqav2_words(text: str) -> str:
    return _vqa_words(text.replace("\n", " ").replace("\t", " ").strip())


def _textvqa_words(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _vqav2_words(text)


def soft(words: Callable[[str], str]) -> Score:
    """VQA's soft accuracy: an answer that three people gave is right. Averaged over all but one of the people, each of
    them in turn."""

    def score(answer: str, right: Sequence[str]) -> float:
        said, people = words(answer), [words(one) for one in right]
        agreed = sum(one == said for one in people)
        return float(mean(min(1.0, (agreed - (one == said)) / 3) for one in people))

    return score


def yes_or_no(answer: str) -> str:
    """``yes`` or ``no`` as MME's evaluation reads an answer, or ``other``: by its first four letters."""
    plain = answer.lower().strip().replace(".", "")
    if len(plain) == 1:
        return {"y": "yes", "n": "no"}.get(plain, "other")
    return next((word for word in ("yes", "no") if word in plain[:4]), "other")


def mme(answer: str, right: str) -> float:
    return float(yes_or_no(answer) == right.lower().strip().replace(".", ""))


def said(answer: str) -> str:
    """As POPE's evaluation reads an answer: it is ``yes`` or ``no`` or neither, to the letter."""
    return answer.lower().strip()


def pope(answer: str, right: str) -> float:
    return float(said(answer) == said(right))


def _not_yes_or_no(right: Sequence[str]) -> str | None:
    wrong = [one for one in right if one.lower().strip().replace(".", "") not in ("yes", "no")]
    return f"the right answer {wrong[0]!r} is not yes or no" if wrong else None


def _empty(right: Sequence[str]) -> str | None:
    return None if all(one.strip() for one in right) else "a right answer is empty, and every answer contains that"


def _no_number(right: Sequence[str]) -> str | None:
    wrong = [one for one in right if number(one) is None]
    return f"the right answer {wrong[0]!r} does not hold one number" if wrong else None


def _few(right: Sequence[str]) -> str | None:
    if len(right) >= 4:
        return None
    return f"it has {len(right)} right answer{'s'[: len(right) - 1]} and this metric needs those of 4 people or more"


def choice(letters: str) -> Metric:
    """A multiple choice among ``letters``."""

    def score(answer: str, right: str) -> float:
        return float(option(answer, letters) == right.strip().upper())

    def fault(right: Sequence[str]) -> str | None:
        wrong = [one for one in right if one.strip().upper() not in [*letters]]
        return f"the right answer {wrong[0]!r} is not one of the letters {', '.join(letters)}" if wrong else None

    name = "choice" if letters == OPTIONS else f"choice:{letters}"
    what = "the letter of the option that the answer chooses, A to H, or `choice:ABCD`"
    return Metric(name, best(score), what, "mmstar, realworldqa", fault)


def numeric(tolerance: float) -> Metric:
    """A number within a share of the right one."""

    def score(answer: str, right: str) -> float:
        a, b = number(answer), number(right)
        return float(a is not None and b is not None and abs(a - b) <= tolerance * abs(b))

    what = "the only number in the answer, equal, or `numeric:0.05` within 5 %"
    return Metric(f"numeric:{tolerance:g}" if tolerance else "numeric", best(score), what, fault=_no_number)


OPTIONS = "ABCDEFGH"
DEFAULT = "exact"
METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact", best(exact), "the same, apart from case, outer blanks and a final full stop"),
        Metric("gqa", best(gqa), "the same, apart from case and punctuation", "gqa, ai2d's letters"),
        Metric("contains", best(contains), "a right answer is part of the answer", "ocrbench", _empty),
        choice(OPTIONS),
        numeric(0),
        Metric("relaxed", best(relaxed), "a number within 5 %, or the same text", "chartqa"),
        Metric("anls", best(anls), "likeness by edit distance, 0 below one half", "docvqa, infovqa", is_graded=True),
        Metric("vqav2", soft(_vqav2_words), "soft accuracy over ten people's answers", "vqav2", _few, is_graded=True),
        Metric(
            "textvqa",
            soft(_textvqa_words),
            "the same, with the words read as TextVQA's evaluation does",
            "textvqa, ok_vqa, vizwiz_vqa",
            _few,
            is_graded=True,
        ),
        Metric("yes-no", best(mme), "yes or no by the first letters", "mme, question by question", _not_yes_or_no),
        Metric(
            "pope", best(pope), "yes or no to the letter; the figure: F1 of yes", "pope", _not_yes_or_no, total="f1"
        ),
        Metric(
            "mme",
            best(mme),
            "the first letters; the figure: MME's score, up to 200 a category",
            "mme",
            _not_yes_or_no,
            total="mme",
        ),
    )
}


def metric_named(name: str) -> Metric:
    """The metric called ``name``: one of :data:`METRICS`, ``choice:LETTERS`` or ``numeric:TOLERANCE``.

    Raises:
        LooklessError: there is none, or its setting cannot be.
    """
    if name in METRICS:
        return METRICS[name]
    kind, _, setting = name.partition(":")
    if kind == "choice":
        if len(setting) < 2 or not set(setting) <= {*string.ascii_uppercase} or len({*setting}) < len(setting):
            raise LooklessError(
                f"the options of {name!r} are not two or more different capital letters, as choice:ABCD."
            )
        return choice(setting)
    if kind == "numeric":
        try:
            tolerance = float(setting)
        except ValueError:
            tolerance = -1.0
        if not 0 <= tolerance < 1:
            raise LooklessError(f"the tolerance of {name!r} is not a share from 0 to 1: numeric:0.05 is within 5 %.")
        return numeric(tolerance)
    raise LooklessError(f"no metric is called {name!r}; choose one of {', '.join(METRICS)}.")
