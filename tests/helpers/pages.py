"""A run's folder made by hand, and a page as a tree, by Python's own parser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from lookless import Geometry, Keep, Plan, Scores, Skip, files, load_data
from lookless.calibration.attention_maps import AttentionProfile, AttentionProfiles
from lookless.calibration.kept_tokens import KeptSample, KeptTokens, Stage
from lookless.calibration.token_places import Grid
from lookless.certification.certificate import Certificate, PlanTest, TaskTest
from lookless.evaluation import Answer, Estimate, Evaluation
from lookless.optimize.folder import Chain, Folder, Part, Run, Target, TaskData
from lookless.provenance import Provenance
from lookless.search.front import Candidate, Front

GEOMETRY = Geometry(model_type="llava", layers=4, hidden=8, intermediate=16, heads=2, kv_heads=2, head_dim=4)
#: Questions and answers that would do harm if they were written as they are, and some that are merely odd.
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "<style>body{display:none}</style>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; &amp;",
    "line\u2028separator\u2029paragraph\x00null\x1b[31m\u202eevil",
    "</textarea></title></svg><iframe src=javascript:alert(1)>",
    "a" * 400,
    "שלום, 你好, مرحبا",
)
MODEL = "my/<b>model</b>"


def evaluation(task: str, samples, plan: list[str]) -> Evaluation:
    """Dense answers are all right; ``plan`` are those under the plan."""
    answers = tuple(
        Answer(question=s.question, expected=s.answer, dense=s.answer, plan=p, sample_hash=s.hash)
        for s, p in zip(samples, plan, strict=True)
    )
    right = sum(a.plan == a.expected for a in answers) / len(answers)
    share = Estimate(value=right, low=max(0.0, right - 0.1), high=right)
    whole = Estimate(value=1.0, low=1.0, high=1.0)
    return Evaluation(
        data=task,
        model=MODEL,
        samples=len(answers),
        accuracy_dense=whole,
        accuracy_plan=share,
        retention=share,
        fidelity=share,
        answers=answers,
    )


def data_file(folder: Path) -> Path:
    """A question about an image for each of :data:`HOSTILE`, which is its answer, too."""
    lines = []
    for i, words in enumerate(HOSTILE):
        Image.new("RGB", (300 + i, 40), (30 * i, 80, 90)).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "question": f"{i}: {words}", "answer": words}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder / "mine.jsonl"


def scores(task: str, name: str, level: float = 1.0, unit: str = "nats") -> Scores:
    rows = [[level * k / 10 ** (i + 1) for i in range(4)] for k in (1, 2, 3)]
    return Scores(
        name=name,
        unit=unit,
        per_sample=rows,
        geometry=GEOMETRY,
        model=MODEL,
        data=f"{task} (calibration)",
        visual=16,
        text=8,
    )


def plans() -> list[Plan]:
    """From mild to aggressive."""
    full = Plan.full(GEOMETRY)
    return [
        full.at([3], attention=Skip()),
        full.at([2, 3], attention=Skip()).at([3], ffn=Skip()),
        full.at([1, 2, 3], attention=Skip(), ffn=Skip()),
        full.at([2], keep=Keep(0.5, rank="diversity")).at([3], keep=Keep(0)),
    ]


def run_folder(root: Path, chosen: int | None = 1) -> Path:
    """All that ``lookless optimize`` leaves, of two tasks; the chain's plan of this number is chosen, and two are
    certified."""
    root.mkdir(parents=True, exist_ok=True)
    folder, data = Folder(root), str(data_file(root))
    samples = load_data(data)
    part = Part(hash=samples.hash, sample_hashes=samples.hashes)
    parts = dict.fromkeys(("calibration", "tuning", "selection", "certification"), part)
    chain = [
        Candidate(
            plan=plan,
            kept=0.9 - 0.2 * i,
            time=0.95 - 0.2 * i,
            risk=10.0 ** (i - 4) / 2,
            fidelity=1 - 0.1 * i,
            distance=10.0 ** (i - 4),
            checked=0.95 - 0.1 * i,
            by_task={"mine": 10.0 ** (i - 4), "<i>other<b>": 2 * 10.0 ** (i - 4)},
            found_by="joint",
        )
        for i, plan in enumerate(plans())
    ]
    cloud = [c.model_copy(update={"risk": 1.5 * c.risk, "kept": c.kept + 0.05}) for c in chain]
    tasks = ("mine", "<i>other<b>")
    run = Run(
        model=MODEL,
        geometry=GEOMETRY,
        data=tuple(TaskData(task=t, data=data, **parts) for t in tasks),
        target=Target(kind="retention", value=0.99),
        machine="a <machine>",
        versions={"torch": "2"},
        seconds={"search": 1.5},
        chosen=chosen,
    )
    files.write_text(folder.run, files.dump(run))
    files.write_text(folder.chain, files.dump(Chain(price="kept", points=tuple(chain))))
    Front(provenance=Provenance(), tasks=tasks, candidates=(*chain, *cloud)).save(folder.front)
    for i in range(len(chain)):
        planned = [s.answer if j >= i else f"wrong {HOSTILE[0]}" for j, s in enumerate(samples)]
        files.write_text(folder.evaluation(i, "mine"), files.dump(evaluation("mine", samples, planned)))
    for name in ("visual_information_gain", "ffn_effect"):
        scores("mine", name).save(folder.scores("mine", name))
    scores("mine", "attention_update_size", 3.0, "||attention(i)|| / ||x(i)||").save(
        folder.scores("mine", "attention_update_size")
    )
    (Plan.full(GEOMETRY) if chosen is None else plans()[chosen]).save_pretrained(folder.plan)
    certificate().save(folder.certificate)
    profile = AttentionProfile(data="mine", data_hash="0", mass=((0.5, 0.4, 0.3, 0.2),), similarity=((0.7, 0.8, 0.9),))
    AttentionProfiles(model=MODEL, profiles={"mine": profile}).save(root / "attention.json")
    return root


#: A plan that no search has tried.
OTHER = Plan.full(GEOMETRY).at([0, 1], ffn=Skip())
#: Of 16 visual tokens in 4 rows, those that the last of :func:`plans` leaves alive from layer 2 on.
LEFT = (0, 1, 5, 6, 7, 10, 12, 15)


def told(root: Path) -> Path:
    """``root``, a run whose last plan is chosen, with what its model was to tell: kept tokens of three prompts (the
    second cut at its sides, the third with an overview, tiles of other tokens and newlines), and two other methods."""
    samples, plan = load_data(str(root / "mine.jsonl")), plans()[3]
    whole = Grid(image=0, first=0, rows=4, columns=4, step=4)
    layouts = [
        (16, (whole,)),
        (16, (whole.model_copy(update={"box": (0.4, 0.0, 0.6, 1.0)}),)),
        (26, (whole, Grid(image=0, level=1, first=16, rows=2, columns=4, step=5))),
    ]
    kept = tuple(
        KeptSample(
            sample_hash=sample.hash,
            visual=visual,
            grids=grids,
            stages=(
                Stage(layer=2, kept=(*LEFT, *(one for one in (17, 21, 24) if one < visual))),
                Stage(layer=3, kept=()),
            ),
        )
        for sample, (visual, grids) in zip(samples, layouts, strict=False)
    )
    KeptTokens(model=MODEL, plan_hash=plan.hash, kept={"mine": kept}).save(root / "kept.json")
    others = {"fastv": (plans()[2], ["wrong"] * 8), "<b>mine</b>": (OTHER, [s.answer for s in samples])}
    for name, (other, answers) in others.items():
        other.save_pretrained(root / "methods" / name.replace("/", "|"))
        found = evaluation("mine", samples, answers).model_copy(update={"plan_hash": other.hash})
        files.write_text(root / "methods" / name.replace("/", "|") / "mine.json", files.dump(found))
    return root


def certificate() -> Certificate:
    """Two plans passed, the third failed, and the fourth was not tested."""

    def tested(i: int, passed: bool) -> PlanTest:
        one = TaskTest(
            task="mine",
            samples=400,
            n=390,
            bad=i,
            loss=i / 390,
            p_value=0.02 * (i + 1),
            upper=0.01 + 0.01 * i,
            passed=passed,
            needed=None if passed else 777,
        )
        return PlanTest(plan=f"point {i}", plan_hash=plans()[i].hash, tasks=(one,))

    tests = (tested(0, True), tested(1, True), tested(2, False))
    return Certificate(level=0.02, confidence=0.95, model=MODEL, tests=tests, untested=1)


@dataclass
class Element:
    """A node of a page. ``text``: its own and that of all below it, in order."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, tag: str | None = None, **wanted: str) -> list[Element]:
        """Elements below by tag, and by words of their attributes (``class_``, ``data_place``)."""
        names = {key.rstrip("_").replace("_", "-"): value for key, value in wanted.items()}
        return [
            one
            for one in self.walk()
            if (tag is None or one.tag == tag)
            and all(set(value.split()) <= set((one.attributes.get(key) or "").split()) for key, value in names.items())
        ]

    def one(self, tag: str | None = None, **wanted: str) -> Element:
        [found] = self.all(tag, **wanted)
        return found


VOID = {"meta", "img", "input", "br", "link"}


class _Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("page", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> ends <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parsed(html: str) -> Element:
    """The page as a tree; every element is closed where it should be."""
    tree = _Tree()
    tree.feed(html)
    tree.close()
    assert tree.open == [tree.root]
    return tree.root
