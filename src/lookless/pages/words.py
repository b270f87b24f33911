"""What a page says in words: five lines for whoever decides, and the facts of a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..certification.certificate import MEANINGS
from ..errors import PlanError
from ..metrics import metric_named
from ..plan import Plan
from ..serving.settings import check_plan
from .material import Material


def percent(share: float) -> str:
    return f"{share:.1%}"


def short(value: float) -> str:
    """Two digits: ``0.042``, ``3.6e-5``."""
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")


def milliseconds(material: Material, plan: Plan, share: float | None) -> str:
    """``7.5 ms instead of 10.4 ms``, of one prompt's prefill by the latency table; empty without one.

    Args:
        share: of the stock model's time, if it is known.
    """
    table = material.latency
    if table is None or (share is None and not plan.is_static):
        return ""
    stock = table.stock_ms / table.batch
    share = table.share(plan) if share is None else share
    return f"{share * stock:.3g} ms instead of {stock:.3g} ms"


def headline(material: Material) -> tuple[tuple[str, str], ...]:
    """Five lines: what they are about, and what is known."""
    return (
        ("Model", _model(material)),
        ("Data", _data(material)),
        ("Wish", _wish(material)),
        ("The plan", _saving(material)),
        ("Certified", _certified(material)),
    )


def _model(material: Material) -> str:
    geometry = material.geometry
    shape = "" if geometry is None else f": {geometry.model_type}, {geometry.layers} layers of width {geometry.hidden}"
    return f"{material.model or 'not named'}{shape}"


def _data(material: Material) -> str:
    held = {task: evaluation.samples for task, evaluation in material.evaluations.items()}
    if held:
        alike = len(set(held.values())) == 1
        counts = f"{next(iter(held.values()))} held-out questions{' each' if len(held) > 1 else ''}"
        return (
            f"{_listed([*held])}: {counts}"
            if alike
            else _listed([f"{task} ({n} questions)" for task, n in held.items()])
        )
    return _listed([*(material.data or material.scores)]) or "none yet"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)


def _wish(material: Material) -> str:
    if material.run is None:
        return "none: these are single files, and not a run"
    target, sure = material.run.target, f", with {material.run.confidence:.0%} confidence"
    if target.kind == "retention":
        least = "milliseconds" if target.price == "time" else "FLOPs"
        what = "right answers" if material.run.loss == "lost" else "answers"
        return f"as few {least} as possible, and {target.value:.1%} of the {what} kept{sure}"
    what = "prefill's FLOPs" if target.kind == "flops" else "prefill's milliseconds"
    return f"lose as little as possible with {target.value:.0%} of the {what}"


def _saving(material: Material) -> str:
    if material.plan is None:
        return "none yet"
    if material.plan.is_full:
        return "changes nothing: no plan fulfils the wish, so the model runs as it is"
    candidate, kept = material.candidate(material.plan), material.share(material.plan)
    parts = [] if kept is None else [f"runs {percent(kept)} of the prefill's FLOPs"]
    took = milliseconds(material, material.plan, None if candidate is None else candidate.time)
    if took:
        parts.append(f"takes {took}")
    elif candidate is not None and candidate.time is not None:
        parts.append(f"takes {percent(candidate.time)} of its time")
    parts += _answers(material)
    return "; ".join(parts) or "its cost is not known without scores"


def _answers(material: Material) -> list[str]:
    """The task on which fewest answers are kept."""
    kept = {t: e.retention or e.fidelity for t, e in material.evaluations.items()}
    known = {task: share for task, share in kept.items() if share is not None}
    if not known:
        return []
    worst = min(known, key=lambda task: known[task].value)
    evaluation = material.evaluations[worst]
    what = metric_named(evaluation.metric).kept if evaluation.retention else "answers"
    where = worst if len(known) == 1 else f"the worst task, {worst}"
    return [f"keeps {percent(known[worst].value)} of the {what} on {where}"]


def _certified(material: Material) -> str:
    certificate = material.certificate
    if certificate is None:
        return "nothing yet"
    if certificate.chosen is None:
        test = certificate.tests[0]
        more = f": about {test.needed} questions of each task would do" if test.needed else ""
        return f"nothing: {certificate.verdict}{more}"
    if material.plan is None or not certificate.covers(material.plan):
        return f"not this plan; the certificate ends at {certificate.chosen.plan}"
    what = MEANINGS.get(certificate.loss, f"the {certificate.loss}")
    where = "every task" if len(certificate.chosen.tasks) > 1 else certificate.chosen.tasks[0].task
    return f"at most {certificate.level:.2%} of {what} on {where}, with {certificate.confidence:.0%} confidence"


def command(material: Material) -> str:
    """What serves the plan, or else runs it; empty without one."""
    if material.plan_path is None or material.model is None or material.plan is None or material.plan.is_full:
        return ""
    try:
        check_plan(material.plan)
    except PlanError:  # what vLLM cannot run, transformers can
        words = ["lookless", "generate", material.model, "--plan", material.plan_path]
        return f"{shlex.join(words)} --image IMAGE --prompt QUESTION"
    return shlex.join(["lookless", "serve", material.model, "--plan", material.plan_path])


def facts(material: Material) -> tuple[tuple[str, str], ...]:
    """On what all this was measured."""
    run = material.run
    if run is None:
        return (("files", material.name),)
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    threads = f"{run.threads} thread{'s' if run.threads != 1 else ''}"
    seconds = ", ".join(f"{stage} {took:.0f} s" for stage, took in run.seconds.items())
    pairs = {
        "folder": material.name,
        "model": run.model + (f" at {run.revision}" if run.revision else ""),
        "machine": ", ".join(filter(None, (run.machine, run.device, run.dtype, threads))),
        "versions": versions,
        "time": seconds,
        "samples": "; ".join(
            f"{data.task}: {data.calibration.samples} to calibrate, {data.tuning.samples} to search, "
            f"{data.selection.samples} to select, {data.certification.samples} to test"
            for data in run.data
        ),
        "data": ", ".join(data.data for data in run.data),
        "read with": str(run.reading),
    }
    return tuple((name, words) for name, words in pairs.items() if words)


def hints(material: Material) -> dict[str, str]:
    """For each section the command that makes what it shows."""
    model = shlex.quote(material.model or "MODEL")
    data = f"{shlex.quote(next(iter(material.data.values()), 'DATA'))} {material.reading}".strip()
    evaluate = f"lookless eval {model} --data {data} --plan PLAN_DIR --json > answers.json"
    whole = f"lookless optimize {model} --data {data} --retention 0.99 --out {_folder(material)}"
    more = f"lookless report {shlex.quote(material.name) if material.run else 'FILES'} --samples 4"
    return {
        "plan": whole if material.run else "lookless plan v-skip --scores scores.json --layers N --out PLAN_DIR",
        "front": whole,
        "certificate": f"lookless certify {_folder(material)}",
        "cases": whole if material.run else evaluate,
        "tokens": more,
        "scores": whole if material.run else f"lookless calibrate {model} --data {data} --out scores.json",
        "silence": more,
        "attention": more,
    }


def _folder(material: Material) -> str:
    return shlex.quote(material.name) if material.run else "RUN_DIR"
