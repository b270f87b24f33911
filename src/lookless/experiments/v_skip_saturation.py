"""Whether visual attention saturates: what arXiv 2606.08511 starts from, measured on the attention itself.

A layer's map is where visual tokens look, mean over heads. The paper says that deep maps become static: a layer mixes
visual tokens as the one before has done already. Beside the similarity of successive maps stand the attention that text
pays to visual tokens, and the information gain, which is what the answer sees of all that.
"""

from __future__ import annotations

from statistics import fmean

from ..calibration.attention_maps import attention_profile
from .agreement import rank_correlation
from .charts import Line, curves_figure
from .claims import counted
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

GAIN = "visual_information_gain"
SIMILARITY, MASS = "likeness to the map before (cosine)", "attention of text on the image"
STATIC = 0.9  #: a cosine from which a map is said to repeat the one before
Profile = dict[str, tuple[float, ...]]


def run(lab: Lab) -> Found:
    profiles = {task: _profile(lab, task) for task in lab.tasks}
    table = Table(
        title="Maps of visual attention, and what the answer sees of them",
        heads=(
            "layer",
            *(f"{name}: {what}" for name in lab.short.values() for what in (SIMILARITY, MASS, "gain, nats")),
        ),
        rows=tuple(
            (
                layer,
                *(
                    value
                    for task, profile in profiles.items()
                    for value in (
                        profile[SIMILARITY][layer - 1] if layer else None,
                        profile[MASS][layer],
                        lab.scores(task, GAIN).mean[layer],
                    )
                ),
            )
            for layer in range(lab.layers)
        ),
        note="The first layer has no map before it.",
    )
    figure = curves_figure(
        {
            lab.short[task]: {
                SIMILARITY: Line([*range(1, lab.layers)], profile[SIMILARITY]),
                MASS: Line([*range(lab.layers)], profile[MASS]),
            }
            for task, profile in profiles.items()
        },
        title=f"Do maps of visual attention become static? (dashed: a cosine of {STATIC})",
        x="decoder layer",
        y="cosine, or share of the attention",
        share=False,
        level=STATIC,
    )
    return Found((table,), _findings(lab, profiles), figure)


def _profile(lab: Lab, task: str) -> Profile:
    """Mean over samples."""
    samples = lab.draw(task)

    def measured() -> Profile:
        found = attention_profile(lab.loaded, samples, progress=False)
        return {SIMILARITY: found.mean_similarity, MASS: found.mean_mass}

    return lab.numbers(f"{task} attention", ("attention", samples.hash), measured)


def _findings(lab: Lab, profiles: dict[str, Profile]) -> tuple[Finding, ...]:
    [first] = lab.scaled(13)
    first = max(first, 1)
    deep = [fmean(profile[SIMILARITY][first - 1 :]) for profile in profiles.values()]
    early = [fmean(profile[SIMILARITY][: first - 1] or (0.0,)) for profile in profiles.values()]
    agree = [
        rank_correlation(profile[SIMILARITY], lab.scores(task, GAIN).mean[1:]) for task, profile in profiles.items()
    ]
    mass = [fmean(profile[MASS][first:]) / (fmean(profile[MASS][:first]) or 1) for profile in profiles.values()]
    said = f"from layer {first} of {lab.layers} on"
    return (
        counted(
            "Sec. 1",
            f"deep maps of visual attention are static (here: a cosine of {STATIC} or more with the layer before)",
            f"{fmean(deep):.2f} {said} in the mean of the tasks, and {fmean(early):.2f} before.",
            min(deep) >= STATIC,
        ),
        counted(
            "Sec. 3.2",
            "where maps repeat, the answer gains nothing (here: a rank correlation of -0.5 or below with the gain)",
            f"{fmean(agree):.2f} in the mean of the tasks, from {min(agree):.2f} to {max(agree):.2f}.",
            fmean(agree) <= -0.5,
        ),
        counted(
            "a control",
            "that is, text looks less at the image there, too (here: half of what it does before, or less)",
            f"{fmean(mass):.2f} of the attention before, {said}.",
            fmean(mass) <= 0.5,
        ),
    )


EXPERIMENT = Experiment(run, "2606.08511", "whether maps of visual attention become static", "Sec. 1; Sec. 3.2")
