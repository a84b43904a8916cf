"""Samplers of masked families: rank x quota x what x revise x stop, as small parts in one loop."""

from xlm.modules.samplers.automata import Automaton, forbid_tokens, match_expression
from xlm.modules.samplers.canvas import Canvas, CellTokens, Denoiser, PromptBatch, Text, read_prompts
from xlm.modules.samplers.constraints import ConstrainedFromLeft, check_constraint, refuse_constrained
from xlm.modules.samplers.plans import Events, Plan
from xlm.modules.samplers.process import P2, Remask, RemaskByConfidence, RemaskLoop, Revision
from xlm.modules.samplers.quotas import Budget, Chooser, Count, Hazard, Quota, Schedule, Stable, Threshold
from xlm.modules.samplers.ranks import Confident, Drawn, LeftToRight, Random, Rank, View
from xlm.modules.samplers.replay import Coupling, sampler_likelihood
from xlm.modules.samplers.rules import CONSTANTS, RULES, RuleName, compose
from xlm.modules.samplers.sampler import Filled, Sampler, fill
from xlm.modules.samplers.trajectories import Generation, fork, record, trajectory_log_probs

__all__ = [
    "CONSTANTS",
    "P2",
    "RULES",
    "Automaton",
    "Budget",
    "Canvas",
    "CellTokens",
    "Chooser",
    "Confident",
    "ConstrainedFromLeft",
    "Count",
    "Coupling",
    "Denoiser",
    "Drawn",
    "Events",
    "Filled",
    "Generation",
    "Hazard",
    "LeftToRight",
    "Plan",
    "PromptBatch",
    "Quota",
    "Random",
    "Rank",
    "Remask",
    "RemaskByConfidence",
    "RemaskLoop",
    "Revision",
    "RuleName",
    "Sampler",
    "Schedule",
    "Stable",
    "Text",
    "Threshold",
    "View",
    "check_constraint",
    "compose",
    "fill",
    "forbid_tokens",
    "fork",
    "match_expression",
    "read_prompts",
    "record",
    "refuse_constrained",
    "sampler_likelihood",
    "trajectory_log_probs",
]
