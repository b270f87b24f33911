"""Published methods, each a pure function from scores (or from nothing but a geometry) to a plan.

Each method is a file here, and one import below, which makes it ``lookless.methods.NAME``, for type checkers too.
"""

from __future__ import annotations

from .alvts import alvts as alvts
from .dash import dash as dash
from .definition import Method as Method
from .divprune import divprune as divprune
from .dop import dop as dop
from .fastv import fastv as fastv
from .ffn_skip import ffn_skip as ffn_skip
from .gsop import gsop as gsop
from .halfv import halfv as halfv
from .halfv_llava import halfv_llava as halfv_llava
from .knobs import Count as Count
from .knobs import Layer as Layer
from .knobs import Layers as Layers
from .knobs import Operations as Operations
from .knobs import Stages as Stages
from .knobs import method as method
from .logit_cosine import logit_cosine as logit_cosine
from .operator_skipping import labels as labels
from .operator_skipping import operator_skipping as operator_skipping
from .presets import READY as READY
from .presets import preset as preset
from .published import Setting as Setting
from .pyramiddrop import pyramiddrop as pyramiddrop
from .random_layers import random_layers as random_layers
from .random_tokens import random_tokens as random_tokens
from .redundancylens import redundancylens as redundancylens
from .registry import METHODS as METHODS
from .registry import PluginWarning as PluginWarning
from .registry import all_methods as all_methods
from .registry import find as find
from .shortv import shortv as shortv
from .sparsevlm import sparsevlm as sparsevlm
from .st3 import st3 as st3
from .state_cosine import state_cosine as state_cosine
from .v2drop import v2drop as v2drop
from .v_skip import v_skip as v_skip
from .v_skip_universal import v_skip_universal as v_skip_universal
from .vica import vica as vica
from .visionzip import visionzip as visionzip
from .visipruner import visipruner as visipruner
from .vispruner import vispruner as vispruner
from .vtw import vtw as vtw
from .vtw_search import vtw_search as vtw_search
