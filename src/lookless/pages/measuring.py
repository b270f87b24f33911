"""What a page shows and only the model can tell: attention, update sizes, kept tokens, answers of other methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from .. import files
from ..calibration.attention_maps import AttentionProfiles, attention_profile
from ..calibration.gradients import diagnose
from ..calibration.kept_tokens import KeptTokens, drops_tokens, kept_tokens
from ..calibration.replay import Position
from ..data import Samples
from ..errors import DataError, LooklessError, first_line, is_out_of_memory
from ..evaluation import Answer, Evaluation, evaluate
from ..loading import Loaded
from ..optimize.folder import Folder
from ..plan import Plan
from ..scores import Scores, pooled
from ..search.seeds import method_plans
from .cases import chosen_of
from .material import Material, Other
from .page import write_page
from .pictures import Album
from .reading import ATTENTION, KEPT, METHODS, read_run
from .sections import EFFECTS

#: Methods asked the same questions, each at the price of the plan, where it can reach that.
ASKED = ("v-skip", "shortv", "vtw", "fastv", "divprune")
#: Questions to each of them at most, shared by the tasks, and of each task at least.
QUESTIONS, LEAST = 200, 20
#: By how much a method may be dearer than the plan.
SLACK = 0.005


def write_whole_page(
    root: Path,
    loaded: Loaded,
    *,
    samples: int = 4,
    batch: int = 25,
    progress: bool = True,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """The page of the run in ``root``, with what its model ``loaded`` tells of so many samples of each task.

    It is first written without: the run is done, and has a page even where the model cannot tell, for lack of memory.
    What was missing is logged.
    """
    material, page = read_run(root).checked(), Folder(root).report
    write_page(material, page)
    try:
        material = measured(material, loaded, samples, root=root, batch=batch, progress=progress, log=log)
    except (LooklessError, MemoryError, RuntimeError) as problem:
        if not isinstance(problem, LooklessError) and not is_out_of_memory(problem):
            raise
        log(f"the page is not whole ({first_line(problem)}): lookless report {root} --samples {samples}")
    else:
        write_page(material, page)


def measured(
    material: Material,
    loaded: Loaded,
    samples: int,
    *,
    root: Path | None = None,
    batch: int = 25,
    progress: bool = True,
    log: Callable[[str], None] = lambda _: None,
) -> Material:
    """``material`` with what ``loaded`` tells, on so many ``samples`` of each task.

    Args:
        loaded: the model of the material, without a plan on it.
        root: a run's folder, where it is kept; and methods are asked for a run alone, as it has the scores they need.
        batch: questions answered together.
        log: is called with each part, in words, as it begins.

    Raises:
        DataError: there is no data to measure on, or it cannot be read.
        ModelError: a plan is applied to the model, or its logits are not finite.
        PlanMismatchError: the plan is for another model.
    """
    if not material.data:
        raise DataError(
            "nothing here names data, so there is nothing to measure on: give scores or an evaluation, too."
        )
    album, reading = Album(material.data, material.reading), material.reading
    few = {task: reading.load(where, split="calibration", limit=samples) for task, where in material.data.items()}
    if reading.skip_bad:
        few = {task: loaded.fitting(some, progress) for task, some in few.items()}
    log(f"looking at {sum(map(len, few.values()))} samples")
    profiles = {task: attention_profile(loaded, some, progress=progress) for task, some in few.items()}
    material = replace(material, attention=AttentionProfiles(model=loaded.name, profiles=profiles))
    sizes = {task: _sizes(material.scores.get(task, {}), loaded, some, progress) for task, some in few.items()}
    scores = {task: {**material.scores.get(task, {}), **sizes.get(task, {})} for task in (*material.scores, *sizes)}
    material = replace(material, scores=scores)
    material = replace(material, kept_tokens=_kept(material, loaded, few, album, samples, progress))
    if root is None:
        return material
    _save(material, sizes, root)
    plans = plans_of_methods(material)
    log(f"asking {len(plans)} methods the same questions")
    others = [_asked(material, loaded, album, root / METHODS / name, plan, batch, progress) for name, plan in plans]
    asked = {other.name for other in others}
    return replace(material, others=(*others, *(one for one in material.others if one.name not in asked)))


def _sizes(known: Mapping[str, Scores], loaded: Loaded, some: Samples, progress: bool) -> dict[str, Scores]:
    """Update sizes, and estimates of the effects that were not measured; those ``known`` of as many samples stay."""
    wanted = [size for _, size, _ in EFFECTS]
    wanted += [estimate for _, _, (effect, estimate) in EFFECTS if effect not in known]
    missing = [name for name in wanted if name not in known or len(known[name].per_sample) < len(some)]
    position: Position = "answer" if any(scores.position == "answer" for scores in known.values()) else "last"
    made = diagnose(loaded, some, position=position, progress=progress) if missing else {}
    return {name: made[name] for name in missing}


def _kept(
    material: Material, loaded: Loaded, few: dict[str, Samples], album: Album, samples: int, progress: bool
) -> KeptTokens | None:
    """Of the prompts that a page shows first; of others, where no answers are known."""
    plan = material.examined
    if plan is None or not drops_tokens(plan):
        return None
    found = {}
    for task, some in few.items():
        evaluation = material.evaluations.get(task)
        if evaluation is not None:
            first = [case.answer for case in chosen_of(task, evaluation, material.others)]
            rest = [one for one in evaluation.answers if one not in first]
            some = _named(task, album, (*first, *rest), samples) or some
        found[task] = kept_tokens(loaded, some, plan, progress=progress)
    return KeptTokens(model=loaded.name, plan_hash=plan.hash, kept=found)


def _named(task: str, album: Album, answers: Iterable[Answer], most: int) -> Samples | None:
    """The samples of the first of ``answers``; None if there are none."""
    hashes = [one.sample_hash for one in answers if one.sample_hash is not None][:most]
    found = album.samples(task, hashes)
    return Samples(task, tuple(found.values())) if found else None


def _save(material: Material, sizes: Mapping[str, Mapping[str, Scores]], root: Path) -> None:
    """Into the folder of the run."""
    if material.attention is not None:
        material.attention.save(root / ATTENTION)
    if material.kept_tokens is not None:
        material.kept_tokens.save(root / KEPT)
    for task, scores in sizes.items():
        for name, one in scores.items():
            one.save(Folder(root).scores(task, name))


def plans_of_methods(material: Material) -> list[tuple[str, Plan]]:
    """The plans of :data:`ASKED` methods at the price of the plan that is examined, by method; those are left out that
    need scores that there are none of, or that cannot be as cheap.

    The price is what the run was to save: milliseconds on its machine, or FLOPs.
    """
    plan, geometry, tokens = material.examined, material.geometry, material.tokens
    if plan is None or plan.is_full or geometry is None or tokens is None:
        return []
    price = _price(material)
    limit = price(plan) + SLACK
    by_method = method_plans(geometry, _pooled(material), visual=tokens[0], text=tokens[1])
    found = []
    for name in ASKED:
        priced = [(price(one), place) for place, one in enumerate(by_method.get(name, ()))]
        within = max((pair for pair in priced if pair[0] <= limit), default=None)
        if within is not None:
            found.append((name, by_method[name][within[1]]))
    return found


def _price(material: Material) -> Callable[[Plan], float]:
    table = material.latency
    if table is not None and material.run is not None and material.run.target.price == "time":
        return table.share
    return lambda plan: material.share(plan) or 0.0


def _pooled(material: Material) -> dict[str, Scores]:
    """By measure, the scores of all tasks together; those that some task lacks are left out."""
    each = [*material.scores.values()]
    names = [name for name in each[0] if all(name in scores for scores in each)] if each else []
    return {name: pooled([scores[name] for scores in each]) for name in names}


def _asked(
    material: Material, loaded: Loaded, album: Album, folder: Path, plan: Plan, batch: int, progress: bool
) -> Other:
    """The answers under ``plan`` to the questions that the examined plan was asked, kept in ``folder``; those that are
    there already are taken."""
    plan.made_by(method=folder.name, model=loaded.name).save_pretrained(folder)
    most, found = max(LEAST, QUESTIONS // max(1, len(material.evaluations))), dict[str, Evaluation]()
    for task, evaluation in material.evaluations.items():
        answers = [one for one in evaluation.answers if one.sample_hash is not None][:most]
        samples = _named(task, album, answers, most)
        if samples is None:
            continue
        path = folder / f"{task}.json"
        old = files.load(path, Evaluation, DataError, 1) if path.exists() else None
        wanted = plan.hash, samples.hash, evaluation.metric
        if old is None or (old.plan_hash, old.data_hash, old.metric) != wanted:
            dense = {one.sample_hash: one.dense for one in answers}
            known = [dense[sample.hash] for sample in samples]
            old = evaluate(loaded, samples, plan, batch=batch, dense=known, metric=evaluation.metric, progress=progress)
            files.write_text(path, files.dump(old))
        found[task] = old
    return material.other(folder.name, plan, found)
