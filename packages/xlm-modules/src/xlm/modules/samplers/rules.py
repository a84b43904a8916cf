"""Samplers by name: the published rules as combinations of parts, and what a config says in one node."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from xlm.modules.options import require
from xlm.modules.samplers.process import P2, Remask, RemaskByConfidence, RemaskLoop, Revision
from xlm.modules.samplers.quotas import Budget, Count, Hazard, Quota, Schedule, Stable, Threshold
from xlm.modules.samplers.ranks import Confident, Drawn, LeftToRight, Random, Rank
from xlm.modules.samplers.sampler import Sampler

RuleName = Literal[
    "any_order",
    "ancestral",
    "first_hitting",
    "confidence",
    "low_confidence",
    "left_to_right",
    "threshold",
    "entropy_bound",
    "klass",
    "remdm_cap",
    "remdm_rescale",
    "remdm_switch",
    "remdm_loop",
    "remdm_conf",
    "p2",
]
RankName = Literal["random", "left_to_right", "top_prob", "margin", "entropy", "drawn"]
QuotaName = Literal["count", "hazard", "hitting", "threshold", "budget", "stable"]
RevisionName = Literal["none", "remdm_cap", "remdm_rescale", "remdm_switch", "remdm_loop", "remdm_conf", "p2"]

RULES: Mapping[RuleName, tuple[RankName, QuotaName, RevisionName]] = {
    "any_order": ("random", "count", "none"),
    "ancestral": ("random", "hazard", "none"),
    "first_hitting": ("random", "hitting", "none"),
    "confidence": ("top_prob", "count", "none"),
    "low_confidence": ("drawn", "count", "none"),
    "left_to_right": ("left_to_right", "count", "none"),
    "threshold": ("top_prob", "threshold", "none"),
    "entropy_bound": ("entropy", "budget", "none"),
    "klass": ("top_prob", "stable", "none"),
    "remdm_cap": ("random", "hazard", "remdm_cap"),
    "remdm_rescale": ("random", "hazard", "remdm_rescale"),
    "remdm_switch": ("random", "hazard", "remdm_switch"),
    "remdm_loop": ("random", "hazard", "remdm_loop"),
    "remdm_conf": ("random", "hazard", "remdm_conf"),
    "p2": ("drawn", "count", "p2"),
}
"""Rank, quota and revision of each rule."""

CONSTANTS: Mapping[str, Mapping[str, object]] = {
    "count": {"num_steps": None, "schedule": "uniform"},
    "hazard": {"num_steps": 128},
    "hitting": {},
    "threshold": {"num_steps": None, "tau": 0.9},
    "budget": {"num_steps": None, "gamma": 0.1, "uncertainty": "entropy"},
    "stable": {"num_steps": None, "tau": 0.9, "eps": 0.01, "evaluations": 2, "fallback": 1},
    "none": {},
    "remdm_cap": {"eta": 0.02},
    "remdm_rescale": {"eta": 0.02},
    "remdm_switch": {"eta": 0.02, "t_on": 0.55},
    "remdm_loop": {"eta": 0.02, "t_on": 0.55, "t_off": 0.05, "alpha_on": 0.9},
    "remdm_conf": {},
    "p2": {"eta": 1.0},
}
"""The constants of each quota and revision, and their defaults."""


def compose(
    rule: RuleName | None = None,
    *,
    rank: RankName | Rank | None = None,
    quota: QuotaName | Quota | None = None,
    revise: RevisionName | None = None,
    stop: Literal["filled", "ended"] = "ended",
    num_steps: int | None = None,
    schedule: Schedule | None = None,
    tau: float | None = None,
    gamma: float | None = None,
    uncertainty: Literal["entropy", "rank"] | None = None,
    eps: float | None = None,
    evaluations: int | None = None,
    fallback: int | None = None,
    eta: float | None = None,
    t_on: float | None = None,
    t_off: float | None = None,
    alpha_on: float | None = None,
    speculate: int | None = None,
) -> Sampler:
    """Compose a sampler by name: a published rule, or rank, quota and revision one by one.

    A constant that is None has the default of its part, and one of a part that is not used is refused.

    Args:
        rule: A name of ``RULES``; None where rank and quota are given. These and ``revise`` replace the
            rule's own.
        rank: Which cells come first: "random", "left_to_right", by confidence "top_prob", "margin" or
            "entropy", or "drawn", by the probability of a token drawn for each; or an object.
        quota: How many cells a turn writes: "count", "hazard", "hitting", "threshold", "budget" or "stable";
            or an object.
        revise: Which cells are masked again: "none", "remdm_cap", "remdm_rescale", "remdm_switch",
            "remdm_loop", "remdm_conf" or "p2".
        stop: "ended": a row leaves when its text is complete; "filled": when all its cells are written.
        num_steps: The most evaluations of a row. Of count and hazard the N of the rule (None: one cell each,
            and 128); elsewhere the last one writes all that is left, and None is no limit.
        schedule: Of count: "uniform", "cosine" (few cells first) or "sine" (many first).
        tau: Of threshold and stable: the confidence to exceed (0.9).
        gamma: Of budget, in nats (0.1).
        uncertainty: Of budget: "entropy", as published, or "rank": what the score of the rank lacks to that
            of a certain cell.
        eps: Of stable: the largest change of a prediction, in nats (0.01).
        evaluations: Of stable: how often the change has to be small (2).
        fallback: Of stable: cells to write if none is ready (1).
        eta: Of remdm: the probability of masking again (0.02), or its part; of p2: weight of written cells
            (1.0).
        t_on: Of remdm_switch and remdm_loop: the time at which remasking begins (0.55).
        t_off: Of remdm_loop: the time at which it ends (0.05).
        alpha_on: Of remdm_loop: clean share of the cells in between (0.9).
        speculate: Of rules whose cells are planned: the most turns of a row to evaluate in one call, with the
            same texts; None for one after another.

    Raises:
        ValueError: If a constant is out of range or of no use, or parts do not fit together.
    """
    require(rule is None or rule in RULES, "rule", rule, f"None or one of {', '.join(RULES)}")
    own_rank, own_quota, own_revise = RULES[rule] if rule is not None else (None, None, "none")
    rank, quota, revise = rank or own_rank, quota or own_quota, revise or own_revise
    if rank is None or quota is None:
        raise ValueError(f"a sampler needs a rule, or a rank and a quota; rules are {', '.join(RULES)}")
    require(stop in ("filled", "ended"), "stop", stop, "'filled' or 'ended'")
    given = {
        "num_steps": num_steps, "schedule": schedule, "tau": tau, "gamma": gamma, "uncertainty": uncertainty,
        "eps": eps, "evaluations": evaluations, "fallback": fallback, "eta": eta, "t_on": t_on,
        "t_off": t_off, "alpha_on": alpha_on,
    }  # fmt: skip
    constants = _constants(quota, revise, {name: value for name, value in given.items() if value is not None})
    ordered = _rank(rank)
    numbered = _quota(quota, ordered, constants)
    bounded = isinstance(numbered, Count | Hazard)
    return Sampler(
        rank=ordered,
        quota=numbered,
        revise=_revision(revise, constants),
        stop=stop,
        num_steps=None if bounded else constants.get("num_steps"),
        speculate=speculate,
    )


def _constants(quota: QuotaName | Quota, revise: RevisionName, given: dict[str, Any]) -> dict[str, Any]:
    """The constants of the two parts: the given ones, and defaults."""
    for name, value, allowed in (("quota", quota, QuotaName), ("revise", revise, RevisionName)):
        names = get_args(allowed)
        require(not isinstance(value, str) or value in names, name, value, f"one of {', '.join(names)}")
    of_quota = CONSTANTS[quota] if isinstance(quota, str) else {"num_steps": None}
    constants = {**of_quota, **CONSTANTS[revise]}
    for name, value in given.items():
        if name not in constants:
            users = [part for part, own in CONSTANTS.items() if name in own]
            raise ValueError(
                f"{name}={value} has no use with quota={quota} and revise={revise}: set it to null, it "
                f"belongs to {', '.join(users)}"
            )
    return {**constants, **given}


def _rank(rank: RankName | Rank) -> Rank:
    if not isinstance(rank, str):
        return rank
    require(rank in get_args(RankName), "rank", rank, f"one of {', '.join(get_args(RankName))}")
    match rank:
        case "random":
            return Random()
        case "left_to_right":
            return LeftToRight()
        case "drawn":
            return Drawn()
        case _:
            return Confident(rank)


def _quota(quota: QuotaName | Quota, rank: Rank, constants: Mapping[str, Any]) -> Quota:
    match quota:
        case "count":
            return Count(constants["num_steps"], constants["schedule"])
        case "hazard":
            return Hazard(constants["num_steps"])
        case "hitting":
            return Hazard(None)
        case "threshold":
            return Threshold(constants["tau"])
        case "budget":
            return _budget(rank, **{name: constants[name] for name in ("gamma", "uncertainty")})
        case "stable":
            names = ("tau", "eps", "evaluations", "fallback")
            return Stable(**{name: constants[name] for name in names})
        case _:
            return quota


def _budget(rank: Rank, gamma: float, uncertainty: str) -> Budget:
    require(uncertainty in ("entropy", "rank"), "uncertainty", uncertainty, "'entropy' or 'rank'")
    if uncertainty == "entropy":
        return Budget(gamma)
    if rank.certain is None:
        raise ValueError(
            f"uncertainty=rank adds up what confidences lack: {rank} has none; use uncertainty=entropy"
        )
    return Budget(gamma, rank.certain)


def _revision(revise: RevisionName, constants: Mapping[str, Any]) -> Revision | None:
    match revise:
        case "none":
            return None
        case "remdm_cap":
            return Remask("cap", constants["eta"])
        case "remdm_rescale":
            return Remask("rescale", constants["eta"])
        case "remdm_switch":
            return Remask("cap", constants["eta"], constants["t_on"])
        case "remdm_loop":
            return RemaskLoop(*(constants[name] for name in ("eta", "t_on", "t_off", "alpha_on")))
        case "remdm_conf":
            return RemaskByConfidence()
        case "p2":
            return P2(constants["eta"])
