"""Published methods, each a pure function from scores (or from nothing but a geometry) to a plan."""

from __future__ import annotations

from .alvts import alvts
from .dash import dash
from .definition import Method
from .divprune import divprune
from .dop import dop
from .fastv import fastv
from .ffn_skip import ffn_skip
from .gsop import gsop
from .halfv import halfv
from .halfv_llava import halfv_llava
from .knobs import Count, Layer, Layers, Operations, Stages, method
from .logit_cosine import logit_cosine
from .operator_skipping import labels, operator_skipping
from .presets import READY, preset
from .published import Setting
from .pyramiddrop import pyramiddrop
from .random_layers import random_layers
from .random_tokens import random_tokens
from .redundancylens import redundancylens
from .registry import METHODS, PluginWarning, all_methods, find
from .shortv import shortv
from .sparsevlm import sparsevlm
from .st3 import st3
from .state_cosine import state_cosine
from .v2drop import v2drop
from .v_skip import v_skip
from .v_skip_universal import v_skip_universal
from .vica import vica
from .visionzip import visionzip
from .visipruner import visipruner
from .vispruner import vispruner
from .vtw import vtw
from .vtw_search import vtw_search

__all__ = [
    "METHODS",
    "READY",
    "Count",
    "Layer",
    "Layers",
    "Method",
    "Operations",
    "PluginWarning",
    "Setting",
    "Stages",
    "all_methods",
    "alvts",
    "dash",
    "divprune",
    "dop",
    "fastv",
    "ffn_skip",
    "find",
    "gsop",
    "halfv",
    "halfv_llava",
    "labels",
    "logit_cosine",
    "method",
    "operator_skipping",
    "preset",
    "pyramiddrop",
    "random_layers",
    "random_tokens",
    "redundancylens",
    "shortv",
    "sparsevlm",
    "st3",
    "state_cosine",
    "v2drop",
    "v_skip",
    "v_skip_universal",
    "vica",
    "visionzip",
    "visipruner",
    "vispruner",
    "vtw",
    "vtw_search",
]
