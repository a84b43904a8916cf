"""Speculation against the sampler that takes one turn after another, with rows that are independent."""

from dataclasses import replace

import pytest
import torch

from xlm.modules.samplers import RuleName, Sampler, check_constraint, compose, forbid_tokens, record

from .exact_samplers import MASK, VOCABULARY, Cells, Rule, TableNetwork, run
from .exact_samplers import prompt_batch as prompts
from .test_replay import generation_of

START = (MASK,) * 6
NETWORK = TableNetwork(length=6)
ROWS = 200
RULES: list[tuple[RuleName, dict[str, object]]] = [
    ("any_order", {}),
    ("any_order", {"num_steps": 3, "stop": "filled"}),
    ("ancestral", {"num_steps": 8}),
    ("first_hitting", {}),
    ("left_to_right", {}),
    ("ancestral", {"num_steps": 4, "rank": "left_to_right"}),
    ("remdm_cap", {"num_steps": 8, "eta": 0.3}),
    ("remdm_switch", {"num_steps": 12, "eta": 0.4, "t_on": 0.6}),
    ("remdm_loop", {"num_steps": 8}),
]


def sampler(rule: RuleName, options: dict[str, object], **more: object) -> Sampler:
    return compose(rule, **options, **more)  # pyright: ignore[reportArgumentType]  # options as texts


@pytest.mark.parametrize("most", [1, 2, 4, 9])
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_texts_evaluations_and_traces_are_those_without(
    rule: RuleName, options: dict[str, object], most: int
) -> None:
    """Also of rows that end, that are given a token, and that are done at different calls."""
    starts: tuple[Cells, ...] = (START, (MASK, 3, MASK, MASK, 2, MASK))
    for number, start in enumerate(starts):
        seeds, may_end = torch.arange(ROWS) * 7919 + 31 * number, number == 0
        texts, _, plain = run(sampler(rule, options), NETWORK, start, seeds, may_end=may_end)
        fast = sampler(rule, options, speculate=most)
        found, _, filled = run(fast, NETWORK, start, seeds, may_end=may_end)
        assert found == texts
        assert torch.equal(filled.nfe, plain.nfe)
        assert torch.equal(torch.cat(filled.edits, dim=1), torch.cat(plain.edits, dim=1))
        assert torch.equal(plain.calls, plain.nfe)
        assert bool((filled.calls <= filled.nfe).all())
        assert bool((filled.states >= filled.nfe).all())
        if most == 1:
            assert torch.equal(filled.calls, plain.nfe)
            assert torch.equal(filled.states, plain.nfe)
        else:
            assert int(filled.calls.sum()) < int(plain.nfe.sum())


@pytest.mark.parametrize(("most", "calls"), [(1, 6), (2, 4), (4, 3), (5, 2), (9, 2)])
def test_every_draft_is_right_where_cells_are_independent(most: int, calls: int) -> None:
    network = TableNetwork(length=6)
    network.table[:] = network.table[0]
    found, _, filled = run(compose("any_order", speculate=most), network, START, torch.arange(50))
    assert found == run(compose("any_order"), network, START, torch.arange(50))[0]
    assert filled.nfe.tolist() == filled.states.tolist() == [6] * 50
    assert filled.calls.tolist() == [calls] * 50
    assert sum(network.rows[:calls]) == 6 * 50


def test_a_network_conditioned_on_time_receives_that_of_the_draft() -> None:
    network = TableNetwork(length=6)
    network.table[:] = network.table[0]
    run(compose("any_order", speculate=9), network, START, torch.arange(1))
    assert network.alphas[0] + network.alphas[1] == pytest.approx([step / 6 for step in range(6)])


def test_tokens_that_are_recorded_are_drawn_one_after_another() -> None:
    plain = generation_of(Rule("random", "count"), TableNetwork())
    fast = replace(plain, sampler=replace(plain.sampler, speculate=4))
    batch, seeds = prompts((MASK,) * 3, 50), torch.arange(50)
    expected, found = record(plain, batch, seeds), record(fast, batch, seeds)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.trace.log_prob, expected.trace.log_prob)


@pytest.mark.parametrize("rule", ["confidence", "threshold", "entropy_bound", "klass", "p2", "remdm_conf"])
def test_rules_that_look_at_the_network_are_refused(rule: RuleName) -> None:
    with pytest.raises(ValueError, match=r"speculate=4 needs cells that are planned(.|\n)*set it to null"):
        compose(rule, speculate=4)


def test_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match="speculate must be at least 1, got 0"):
        compose("any_order", speculate=0)
    with pytest.raises(ValueError, match=r"speculate=2 drafts tokens(.|\n)*a constraint(.|\n)*to null"):
        check_constraint(compose("any_order", speculate=2), forbid_tokens([], VOCABULARY))
