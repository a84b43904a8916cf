"""Samplers: the distribution of every combination by enumeration, their identities, and what is refused."""

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from xlm.modules import Cosine, LogLinear, NoiseSchedule, Polynomial, TokenSampling
from xlm.modules.samplers import (
    RULES,
    Budget,
    Confident,
    Count,
    Hazard,
    Random,
    Remask,
    RemaskByConfidence,
    RemaskLoop,
    Sampler,
    compose,
)
from xlm.modules.samplers.ranks import View

from .exact_samplers import (
    FIRST,
    MASK,
    VOCABULARY,
    Rule,
    TableNetwork,
    assert_drawn_from,
    distribution,
    run,
    total_variation,
    up_to_end,
)

START = (MASK,) * 3
RANKS = ("random", "left_to_right", "top_prob", "margin", "entropy", "drawn")
ROWS = 4000


def rules() -> list[Rule]:
    """Every valid pair of rank and quota, and every revision."""
    stable = {"tau": 0.35, "eps": 0.6, "evaluations": 1, "fallback": 1}
    pairs = [
        Rule(rank, quota, "none", constants)
        for rank in RANKS
        for quota, constants in (
            ("count", {}),
            ("count", {"num_steps": 2}),
            ("hazard", {"num_steps": 3}),
            ("hitting", {}),
            ("budget", {"gamma": 0.9}),
            ("stable", stable),
        )
    ]
    pairs.append(Rule("top_prob", "stable", "none", {**stable, "evaluations": 2, "tau": 0.2, "eps": 5.0}))
    for rank in ("top_prob", "margin", "entropy", "drawn"):
        tau = {"entropy": -0.7, "margin": 0.3}.get(rank, 0.5)
        pairs.append(Rule(rank, "threshold", "none", {"tau": tau}))
        pairs.append(Rule(rank, "budget", "none", {"gamma": 0.6, "uncertainty": "rank"}))
    loop = {"eta": 0.8, "t_on": 0.8, "t_off": 0.2, "alpha_on": 0.5}
    revised = [
        Rule("random", "hazard", name, {"num_steps": steps, **constants})
        for name, steps, constants in (
            ("remdm_cap", 4, {"eta": 0.3}),
            ("remdm_rescale", 4, {"eta": 0.6}),
            ("remdm_switch", 4, {"eta": 0.4, "t_on": 0.6}),
            ("remdm_loop", 5, loop),
            ("remdm_conf", 4, {}),
        )
    ]
    planned = [
        Rule(rank, "count", "p2", {"eta": eta, **constants})
        for rank, eta in (("random", 0.0), ("drawn", 0.5), ("drawn", 2.0), ("top_prob", 2.0))
        for constants in ({}, {"num_steps": 2})
    ]
    return [*pairs, *revised, *planned]


def sampler_of(rule: Rule, **options: object) -> Sampler:
    return compose(rank=rule.rank, quota=rule.quota, revise=rule.revise, **rule.constants, **options)  # pyright: ignore[reportArgumentType]  # names as texts


def name_of(rule: Rule) -> str:
    return "-".join([rule.rank, rule.quota, rule.revise, *(f"{k}={v}" for k, v in rule.constants.items())])


def seeds(rows: int) -> Tensor:
    return torch.arange(rows) * 7919 + 11


@pytest.mark.parametrize("rule", rules(), ids=name_of)
def test_texts_follow_the_enumerated_distribution(rule: Rule) -> None:
    """Also: no MASK remains, given cells stay, every evaluation writes, and rows do not depend on others."""
    network, sampler = TableNetwork(), sampler_of(rule)
    texts, text, filled = run(sampler, network, START, seeds(ROWS))
    assert_drawn_from(texts, distribution(rule, network.prediction(), START))
    assert int(filled.nfe.sum()) == sum(network.rows)
    trace = text.trace(filled.edits, torch.full((ROWS,), 3))
    written = (trace.step > 0) & (trace.token != MASK)
    turns = set(zip(trace.row[written].tolist(), trace.step[written].tolist(), strict=True))
    assert len(turns) == int(filled.nfe.sum()), "an evaluation that writes nothing"
    if rule.revise == "none":
        assert int(filled.nfe.max()) <= 3
    given = (MASK, FIRST + 1, MASK)
    backwards, _, _ = run(sampler, network, given, seeds(50).flip(0))
    forwards, _, _ = run(sampler, network, given, seeds(50))
    assert forwards == backwards[::-1]
    assert {row[1] for row in forwards} == {FIRST + 1}
    alone = [run(sampler, network, given, seed.unsqueeze(0))[0][0] for seed in seeds(5)]
    assert alone == forwards[:5]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("stop", ["filled", "ended"])
def test_texts_that_end_follow_their_distribution(name: str, stop: str) -> None:
    """What would be written behind an end changes no text; a row that is complete costs no evaluation."""
    rank, quota, revise = RULES[name]  # pyright: ignore[reportArgumentType]  # a name of RULES
    of_quota: Mapping[str, Mapping[str, float]] = {
        "hazard": {"num_steps": 3},
        "threshold": {"tau": 0.5},
        "budget": {"gamma": 0.9},
        "stable": {"tau": 0.35, "eps": 0.6, "evaluations": 1, "fallback": 1},
    }
    own: Mapping[str, Mapping[str, float]] = {
        "remdm_switch": {"eta": 0.4, "t_on": 0.6},
        "remdm_loop": {"eta": 0.8, "t_on": 0.8, "t_off": 0.2, "alpha_on": 0.5},
        "remdm_conf": {},
    }
    revision = own.get(revise, {} if revise == "none" else {"eta": 0.5})
    constants = {**of_quota.get(quota, {}), **revision}
    rule, network = Rule(rank, quota, revise, constants), TableNetwork(seed=8)
    texts, _, filled = run(sampler_of(rule, stop=stop), network, START, seeds(ROWS), may_end=True)
    assert_drawn_from(texts, up_to_end(distribution(rule, network.prediction(may_end=True), START)))
    if name == "first_hitting":
        assert set(filled.nfe.tolist()) == ({3} if stop == "filled" else {1, 2, 3})


def test_the_test_of_draws_distinguishes_distributions() -> None:
    network = TableNetwork()
    texts, _, _ = run(compose("ancestral", num_steps=1), network, START, seeds(ROWS))
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(texts, distribution(Rule("random", "count"), network.prediction(), START))


def test_filters_act_on_tokens_alone() -> None:
    """Which cells are written when is settled by the prediction itself."""

    def cells(name: str, sampling: TokenSampling) -> list[list[int]]:
        texts, text, filled = run(compose(name), TableNetwork(), START, seeds(200), sampling=sampling)  # pyright: ignore[reportArgumentType]  # a name
        assert len(texts) == 200
        trace = text.trace(filled.edits, torch.full((200,), 3))
        return torch.stack([trace.step, trace.row, trace.position])[:, trace.step == 1].tolist()

    for name in ("ancestral", "any_order", "confidence", "entropy_bound"):
        plain = cells(name, TokenSampling())
        assert plain == cells(name, TokenSampling(0.3)) == cells(name, TokenSampling(1.0, 1))


def test_the_most_evaluations_are_kept() -> None:
    for name in ("threshold", "entropy_bound", "klass"):
        constants = {"gamma": 0.0} if name == "entropy_bound" else {"tau": 0.99}
        for most in (1, 2):
            sampler = compose(name, num_steps=most, **constants)  # pyright: ignore[reportArgumentType]
            texts, _, filled = run(sampler, TableNetwork(), START, seeds(20))
            assert filled.nfe.tolist() == [most] * 20
            assert {len(text) for text in texts} == {3}
            assert not any(MASK in text for text in texts)


# Identities


def test_steps_by_hazard_are_binomial_counts() -> None:
    """Each cell by itself, with the probability of the step: the chain of ancestral sampling."""
    predict = TableNetwork().prediction()
    by_counts = distribution(Rule("random", "hazard", "none", {"num_steps": 3}), predict, START)
    chain = distribution(Rule("random", "hazard", "remdm_cap", {"num_steps": 3, "eta": 0.0}), predict, START)
    assert total_variation(by_counts, chain) < 1e-14


def test_path_planning_without_weight_is_the_random_order() -> None:
    """With N < L it has fixed counts, not those of ancestral sampling."""
    predict = TableNetwork().prediction()
    for constants in ({}, {"num_steps": 2}):
        planned = distribution(Rule("random", "count", "p2", {"eta": 0.0, **constants}), predict, START)
        plain = distribution(Rule("random", "count", "none", constants), predict, START)
        assert total_variation(planned, plain) < 1e-14
    ancestral = distribution(Rule("random", "hazard", "none", {"num_steps": 2}), predict, START)
    assert total_variation(plain, ancestral) > 1e-3


@pytest.mark.parametrize("rank", ["top_prob", "margin", "entropy"])
def test_extreme_constants_fill_one_cell_at_a_time(rank: str) -> None:
    """The same texts as one cell each, draw by draw."""
    one, _, _ = run(compose(rank=rank, quota="count"), TableNetwork(), START, seeds(100))  # pyright: ignore[reportArgumentType]
    highest = -1e-12 if rank == "entropy" else 1 - 1e-12
    for options in ({"quota": "threshold", "tau": highest}, {"quota": "budget", "gamma": 0.0}):
        sampler = compose(rank=rank, **options)  # pyright: ignore[reportArgumentType]
        assert run(sampler, TableNetwork(), START, seeds(100))[0] == one
    settled = compose(rank=rank, quota="stable", tau=1 - 1e-12)  # pyright: ignore[reportArgumentType]
    assert run(settled, TableNetwork(), START, seeds(100))[0] == one


def test_as_many_steps_as_cells_are_one_cell_each() -> None:
    for rank in RANKS:
        many = compose(rank=rank, quota="count", num_steps=3)
        one = compose(rank=rank, quota="count")
        drawn = [run(sampler, TableNetwork(), START, seeds(100))[0] for sampler in (many, one)]
        assert drawn[0] == drawn[1]


def test_the_budget_of_entropies_counts_those_before() -> None:
    """Ranked by entropy the largest one is the last: the entropies before it add up to at most gamma."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(2000 * 4, 5, generator=generator, dtype=torch.float64)
    masked = torch.ones(2000, 4, dtype=torch.bool)
    view = View(torch.arange(2000), 1, masked, masked, logits)
    scores = Confident("entropy").scores(view)
    chosen = Budget(1.0).choose(scores, view)
    rows: list[list[float]] = (-scores).tolist()
    for values, cells in zip(rows, chosen.tolist(), strict=True):
        ordered = sorted(range(4), key=values.__getitem__)
        before = itertools.accumulate((values[cell] for cell in ordered), initial=0.0)
        expected = {cell for cell, total in zip(ordered, before, strict=False) if total <= 1.0}
        assert {cell for cell in range(4) if cells[cell]} == expected
    other = Budget(1.0).choose(Confident("margin").scores(view), view)
    assert not torch.equal(other, chosen), "another rank is another rule"


@pytest.mark.parametrize("schedule", [Polynomial(1.0), LogLinear(), Cosine()], ids=repr)
def test_planned_remasking_keeps_the_clean_share(schedule: NoiseSchedule) -> None:
    revisions = [
        Remask("cap", 0.1),
        Remask("cap", 0.0),
        Remask("rescale", 0.7),
        Remask("cap", 0.4, 0.55),
        RemaskLoop(0.05, 0.55, 0.05, 0.9),
    ]
    for revise in revisions:
        steps = revise.transitions(schedule, 40)
        alpha = steps.alpha.tolist()
        clean = alpha[0]
        moves = zip(steps.unmask.tolist(), steps.remask.tolist(), alpha[1:], strict=True)
        for unmask, remask, expected in moves:
            clean = clean * (1 - remask) + (1 - clean) * unmask
            assert clean == pytest.approx(expected, abs=1e-12), revise
        assert (steps.remask.max() > 0) == (revise != Remask("cap", 0.0))
    loop = RemaskLoop(0.05, 0.55, 0.05, 0.9).transitions(schedule, 40)
    assert loop.unmask[20].item() == pytest.approx(0.05 * 0.9 / 0.1)
    unused = RemaskByConfidence().transitions(schedule, 40)
    assert unused.unmask.tolist() == Remask("cap", 0.0).transitions(schedule, 40).unmask.tolist()


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a sampler needs a rule, or a rank and a quota"),
        ({"rank": "margin"}, "a sampler needs a rule, or a rank and a quota"),
        ({"rule": "best"}, "rule must be None or one of any_order"),
        ({"rule": "klass", "rank": "best"}, "rank must be one of random"),
        ({"rule": "klass", "quota": "best"}, "quota must be one of count"),
        ({"rule": "klass", "revise": "best"}, "revise must be one of none"),
        ({"rule": "klass", "stop": "best"}, "stop must be 'filled' or 'ended'"),
        ({"rule": "confidence", "tau": 0.5}, "tau=0.5 has no use with quota=count and revise=none"),
        ({"rule": "first_hitting", "num_steps": 4}, "num_steps=4 has no use with quota=hitting"),
        ({"rule": "any_order", "quota": "threshold"}, "quota=threshold needs a rank by confidence"),
        ({"rule": "any_order", "quota": "budget", "uncertainty": "rank"}, "adds up what confidences lack"),
        ({"rule": "remdm_cap", "rank": "margin"}, "masks and writes cells by rank=random"),
        ({"rule": "confidence", "revise": "remdm_cap"}, "follows the steps of quota=hazard"),
        ({"rule": "first_hitting", "revise": "remdm_cap"}, "follows the steps of quota=hazard"),
        ({"rule": "threshold", "revise": "p2"}, "revise=p2 needs quota=count"),
        ({"rule": "p2", "rank": "margin"}, "revise=p2 compares log-probabilities"),
        ({"rule": "confidence", "num_steps": 0}, "num_steps must be None or at least 1"),
        ({"rule": "ancestral", "num_steps": 0}, "num_steps must be at least 1"),
        ({"rule": "threshold", "num_steps": 0}, "num_steps=0: at least 1"),
        ({"rule": "confidence", "schedule": "best"}, "schedule must be one of"),
        ({"rule": "threshold", "tau": 1.0}, r"tau must be in \[0, 1\), got 1.0"),
        ({"rule": "threshold", "rank": "entropy", "tau": 0.5}, "tau must be below 0, in nats"),
        ({"rule": "klass", "tau": 1.0}, r"tau must be in \[0, 1\), got 1.0"),
        ({"rule": "klass", "eps": 0.0}, "eps must be greater than 0"),
        ({"rule": "klass", "evaluations": 0}, "evaluations must be at least 1"),
        ({"rule": "klass", "fallback": 0}, "fallback must be at least 1"),
        ({"rule": "entropy_bound", "gamma": -0.1}, "gamma must be at least 0"),
        ({"rule": "entropy_bound", "uncertainty": "best"}, "uncertainty must be 'entropy' or 'rank'"),
        ({"rule": "remdm_cap", "eta": 1.5}, r"eta must be in \[0, 1\]"),
        ({"rule": "remdm_switch", "t_on": 0.0}, r"t_on must be in \(0, 1\]"),
        ({"rule": "remdm_loop", "eta": 0.5}, r"eta must be in \[0, 0.111\]"),
        ({"rule": "remdm_loop", "t_off": 0.6}, r"t_off must be in \(0, t_on=0.55\)"),
        ({"rule": "p2", "eta": -1.0}, "eta must be at least 0"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeCheckError)) as refused:
        compose(**options)  # pyright: ignore[reportArgumentType]  # tests also give wrong options
    if isinstance(refused.value, TypeCheckError):  # where annotations are checked, they refuse unknown names
        assert "best" in options.values()
    else:
        refused.match(message)
        assert "\n" not in str(refused.value)


def test_every_sampler_states_what_its_order_depends_on() -> None:
    kinds = {name: compose(name).order for name in RULES}
    by_text = {"confidence", "left_to_right", "threshold", "entropy_bound", "klass"}
    by_tokens = {"low_confidence", "remdm_conf", "p2"}
    for name, kind in kinds.items():
        assert kind == ("text" if name in by_text else "tokens" if name in by_tokens else "seed"), name
    assert compose("entropy_bound", rank="random").order == "seed"
    assert {name for name in RULES if compose(name).is_planned} == {
        name for name in RULES if kinds[name] == "seed" or name == "left_to_right"
    }


def test_a_plan_gives_every_state_beforehand() -> None:
    masked = torch.tensor([[True, True, False, True], [False, False, False, True]])
    for name in ("any_order", "ancestral", "first_hitting", "left_to_right"):
        plan = compose(name).plan(masked, torch.tensor([3, 4]), LogLinear())
        found = torch.zeros_like(masked)
        for turn, write in enumerate(plan.turns, start=1):
            row, column = plan.writes.row[write], plan.writes.column[write]
            assert not found[row, column].any()
            found[row, column] = True
            assert plan.counts(turn).tolist() == torch.bincount(row, minlength=2).tolist()
            assert torch.equal(plan.alpha_of_rows(turn)[row], plan.alpha[write])
        assert torch.equal(found, masked)
        assert plan.counts(99).tolist() == [0, 0]
    for sampler in (compose("confidence"), compose("p2"), compose("remdm_conf")):
        with pytest.raises(ValueError, match="has no plan"):
            sampler.plan(masked, torch.tensor([3, 4]), LogLinear())
    remasking = compose("remdm_rescale", eta=1.0, num_steps=20).plan(masked, torch.arange(2), LogLinear())
    assert remasking.remasks is not None
    assert len(remasking.remasks.row) > 0
    assert len(remasking.writes.row) == len(remasking.remasks.row) + 4


def test_planned_rules_compute_logits_of_written_cells_only() -> None:
    for name, logits in (("any_order", [60, 60, 60]), ("confidence", [180, 120, 60])):
        network = TableNetwork()
        run(compose(name), network, START, seeds(60))  # pyright: ignore[reportArgumentType]  # a name
        assert network.logits == logits
        shares = [1 - alphas[0] for alphas in network.alphas]
        assert shares == pytest.approx([1, 2 / 3, 1 / 3])


def test_own_parts_replace_names() -> None:
    sampler = Sampler(Random(), Count(2))
    assert compose(rank=Random(), quota=Count(2)) == sampler
    assert compose("ancestral", num_steps=3) == Sampler(Random(), Hazard(3))
    assert math.isclose(
        sum(distribution(Rule("random", "count"), TableNetwork().prediction(), START).values()), 1
    )
    assert VOCABULARY == 5
