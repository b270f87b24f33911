"""lookless: look less, at the right depth.

Multimodal language models spend most of a prompt on visual tokens, and in many decoder layers those tokens' attention,
feed-forward network, or both change nothing that the answer can see. lookless measures where, writes it down as a plan,
makes the model do less work, and says what that costs and saves::

    import lookless

    loaded = lookless.load_model("reference")
    scores = lookless.calibrate(loaded, lookless.load_data("reference:chart", split="calibration", limit=20))
    plan = lookless.v_skip(scores, layers=7)
    with lookless.apply(loaded.model, plan):
        ...

Importing this package patches nothing and imports no torch. The public names are listed in ``__init__.pyi``; each is
imported when it is first used.
"""

from __future__ import annotations

from .lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
