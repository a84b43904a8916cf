"""The likelihood of samplers: what writers note, replay against enumerated distributions, refusals."""

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from xlm.modules import (
    Draw,
    Force,
    Polynomial,
    Recorded,
    TokenSampling,
    Writer,
    draw_places,
    row_seeds,
    seeds_of_draw,
    uniform,
)
from xlm.modules.records import Event, SamplerLikelihood, Targets
from xlm.modules.samplers import (
    Coupling,
    Denoiser,
    Generation,
    compose,
    record,
    sampler_likelihood,
    trajectory_log_probs,
)

from .exact_samplers import (
    END,
    FIRST,
    MASK,
    VOCABULARY,
    Cells,
    Distribution,
    Rule,
    TableNetwork,
    Vocabulary,
    distribution,
    prompt_batch,
    up_to_end,
)
from .test_samplers import START, name_of, rules, sampler_of

ORDINARY = range(FIRST, VOCABULARY)
FULL = list(itertools.product(ORDINARY, repeat=3))
TEXTS = [text for length in range(4) for text in itertools.product(ORDINARY, repeat=length)]
BY_TOKENS = [rule for rule in rules() if sampler_of(rule).order == "tokens"]
BY_TEXT = [rule for rule in rules() if sampler_of(rule).order == "text"]
BY_SEED = [rule for rule in rules() if sampler_of(rule).order == "seed"]
MEASURED = [
    TokenSampling(0.7, 2),
    TokenSampling(1.0, None, 0.8),
    TokenSampling(0.0),
]


def generation_of(
    rule: Rule, network: TableNetwork, sampling: TokenSampling | None = None, **options: object
) -> Generation:
    denoiser = Denoiser(network, Vocabulary(), Polynomial(1.0), MASK)
    sampler = sampler_of(rule, **options)
    return Generation(sampler, denoiser, sampling or TokenSampling(), [END], END, END)


def score(
    generation: Generation,
    texts: list[Cells],
    repeats: int = 1,
    *,
    start: Cells = START,
    may_end: bool = False,
    num_draws: int = 1,
    event: Event = "text",
    coupling: Coupling = "independent",
) -> SamplerLikelihood:
    """Each text with ``repeats`` seeds of its own."""
    ids = torch.tensor([[*text, *[END] * (3 - len(text))] for text in texts]).repeat_interleave(repeats, 0)
    lengths = torch.tensor([len(text) for text in texts]).repeat_interleave(repeats)
    batch = prompt_batch(start, len(ids), may_end=may_end)
    seeds = torch.arange(len(ids)) * 7919 + 11
    options = {"num_draws": num_draws, "event": event, "coupling": coupling}
    return sampler_likelihood(generation, batch, Targets(ids, lengths), seeds, **options)  # pyright: ignore[reportArgumentType]  # typed above


def assert_mean_weights(found: SamplerLikelihood, texts: list[Cells], expected: Distribution) -> None:
    """The mean over the seeds of each text is its probability, within 4 standard errors."""
    weights = found.log_weights[0].exp().view(len(texts), -1)
    error = weights.std(1) / math.sqrt(weights.shape[1])
    exact = torch.tensor([expected.get(text, 0.0) for text in texts], dtype=torch.float64)
    assert bool(((weights.mean(1) - exact).abs() <= 4 * error + 1e-12).all())
    assert float(error.sum()) < 0.12, "the weights say little"


@pytest.mark.parametrize("rule", BY_TEXT, ids=name_of)
def test_an_order_that_the_text_decides_has_an_exact_likelihood(rule: Rule) -> None:
    network = TableNetwork()
    found = score(generation_of(rule, network), FULL, num_draws=3)
    expected = distribution(rule, network.prediction(), START)
    assert found.nll.neg().exp().tolist() == pytest.approx([expected[text] for text in FULL], rel=1e-12)
    assert float(found.nll.neg().exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert (found.nll_kind, found.num_draws, found.models_length) == ("exact", 1, False)
    assert int(found.nfe.sum()) == sum(network.rows)
    assert bool((found.smallest_gap > 1e-6).all())
    assert bool(found.smallest_gap.isinf().all()) == (rule.rank == "left_to_right" and rule.quota == "count")


@pytest.mark.parametrize("rule", BY_SEED, ids=name_of)
def test_the_mean_over_plans_is_the_distribution_of_the_sampler(rule: Rule) -> None:
    """Also of those that mask cells again: all writes of a cell but the last are drawn."""
    network = TableNetwork()
    found = score(generation_of(rule, network), FULL, 250 if rule.revise == "none" else 800)
    assert_mean_weights(found, FULL, distribution(rule, network.prediction(), START))
    assert found.nll_kind == "bound"
    assert found.num_tokens.tolist() == [3] * len(found.nll)


ENDING = [
    Rule("random", "hitting"),
    Rule("random", "hazard", "none", {"num_steps": 2}),
    Rule("random", "count", "none", {"num_steps": 2}),
    Rule("left_to_right", "count"),
    Rule("top_prob", "threshold", "none", {"tau": 0.5}),
    Rule("entropy", "budget", "none", {"gamma": 0.9}),
    Rule("random", "hazard", "remdm_cap", {"num_steps": 4, "eta": 0.3}),
]


@pytest.mark.parametrize("rule", ENDING, ids=name_of)
def test_cells_behind_the_end_are_latent_or_part_of_the_event(rule: Rule) -> None:
    network = TableNetwork(seed=8)
    generation = generation_of(rule, network)
    cells = distribution(rule, network.prediction(may_end=True), START)
    found = score(generation, TEXTS, 250, may_end=True)
    assert_mean_weights(found, TEXTS, up_to_end(cells))
    assert found.models_length
    padded = {text: cells.get((*text, *[END] * (3 - len(text))), 0.0) for text in TEXTS}
    of_cells = score(generation, TEXTS, 250, may_end=True, event="cells")
    assert_mean_weights(of_cells, TEXTS, padded)
    by_text = generation.sampler.order == "text"
    assert of_cells.nll_kind == ("exact" if by_text else "bound")
    # From left to right nothing is written behind the end.
    assert found.nll_kind == ("exact" if rule.rank == "left_to_right" else "bound")


@pytest.mark.parametrize("sampling", MEASURED)
def test_filters_count(sampling: TokenSampling) -> None:
    """By a sum over all histories with the filtered predictions."""
    rule, network = Rule("top_prob", "count"), TableNetwork()
    plain = network.prediction()

    def value(cells: Cells) -> dict[Cells, float]:
        places = [place for place, token in enumerate(cells) if token == MASK]
        if not places:
            return {cells: 1.0}
        best = max(places, key=lambda place: (max(plain(cells, place).values()), -place))
        log_p = torch.tensor([plain(cells, best)[token] for token in ORDINARY], dtype=torch.float64).log()
        shares = sampling.log_probs(log_p.unsqueeze(0))[0].exp().tolist()
        result: defaultdict[Cells, float] = defaultdict(float)
        for token, share in zip(ORDINARY, shares, strict=True):
            after = (*cells[:best], token, *cells[best + 1 :])
            for text, mass in value(after).items() if share > 0 else ():
                result[text] += share * mass
        return result

    expected = value(START)
    found = score(generation_of(rule, network, sampling), FULL)
    assert found.nll.neg().exp().tolist() == pytest.approx([expected.get(text, 0.0) for text in FULL])
    assert bool(found.nll.isinf().any()) == (len(expected) < len(FULL))


def of_every_order(found: SamplerLikelihood) -> Tensor:
    """(6,) log-weights of a text under each order of three cells, which are equally probable."""
    every = torch.unique(found.log_weights[0])
    assert len(every) == 6
    return every


def test_one_draw_is_the_bound_of_masked_diffusion_and_more_draws_tighten_it() -> None:
    """E nll_1 of first hitting is sum over n of the mean cross entropy of n masked cells; E nll_K falls to
    -log p(x), and rotations of an order are better than independent ones."""
    rule, network, text = Rule("random", "hitting"), TableNetwork(), (3, 2, 4)
    generation = generation_of(rule, network)
    log_weights = of_every_order(score(generation, [text], 60))
    predict = network.prediction()
    bound = 0.0
    for number in (1, 2, 3):
        subsets = list(itertools.combinations(range(3), number))
        for subset in subsets:
            cells = tuple(MASK if place in subset else text[place] for place in range(3))
            loss = sum(-math.log(predict(cells, place)[text[place]]) for place in subset)
            bound += loss / number / len(subsets)
    assert float(-log_weights.mean()) == pytest.approx(bound, rel=1e-12)

    exact = -math.log(distribution(rule, predict, START)[text])
    means: list[float] = [-float(log_weights.mean())]
    for number in (2, 3):
        tuples = itertools.product(log_weights, repeat=number)
        means.append(sum(math.log(number) - float(torch.stack(t).logsumexp(0)) for t in tuples) / 6**number)
    assert means[0] > means[1] > means[2] > exact
    for number, mean in ((1, means[0]), (2, means[1]), (3, means[2])):
        found = score(generation, [text], 2000, num_draws=number).nll
        assert abs(float(found.mean()) - mean) < 4 * float(found.std()) / math.sqrt(2000)
    rotated = score(generation, [text], 200, num_draws=3, coupling="rotations").nll
    cycles = torch.unique(rotated.round(decimals=12))
    assert len(cycles) == 2, "all orders are rotations of two"
    assert means[2] > float(cycles.mean()) >= exact


@pytest.mark.parametrize("rule", [*BY_TEXT, *BY_SEED], ids=name_of)
def test_replay_of_a_generation_is_what_was_recorded_bit_for_bit(rule: Rule) -> None:
    """Of cells that are written several times, the last write."""
    generation = generation_of(rule, TableNetwork(), TokenSampling(0.8, 2))
    seeds, batch = torch.arange(60), prompt_batch((MASK, 3, MASK), 60)
    written = record(generation, batch, seeds_of_draw(0, seeds))
    last: dict[tuple[int, int], tuple[int, float]] = {}
    trace = written.trace
    edits = zip(trace.row.tolist(), trace.position.tolist(), trace.log_prob.tolist(), strict=True)
    for number, (row, position, log_prob) in enumerate(edits):
        if int(trace.step[number]) > 0 and int(trace.token[number]) != MASK:
            last[row, position] = number, log_prob
        else:
            assert log_prob == 0.0
    recorded = [0.0] * 60
    for (row, _), (_, log_prob) in sorted(last.items(), key=lambda item: item[1][0]):
        recorded[row] += log_prob
    targets = Targets(written.ids, written.lengths)
    found = sampler_likelihood(generation, batch, targets, seeds)
    assert found.log_weights[0].tolist() == recorded
    again = trajectory_log_probs(generation, batch, trace, seeds_of_draw(0, seeds))
    assert torch.equal(again.log_prob, trace.log_prob)


@pytest.mark.parametrize("rule", [Rule("left_to_right", "count"), Rule("top_prob", "count")], ids=name_of)
def test_the_gradient_of_trajectories_is_that_of_the_expected_reward(rule: Rule) -> None:
    network = TableNetwork(scale=0.4)
    network.table.requires_grad_()
    generation, rows = generation_of(rule, network), 3000
    batch, seeds = prompt_batch(START, rows), torch.arange(rows)
    with torch.no_grad():
        written = record(generation, batch, seeds)
    texts = [tuple(row) for row in written.ids.tolist()]
    first = [texts.index(text) for text in FULL]
    reward = torch.linspace(-1, 2, len(FULL), dtype=torch.float64)
    found = trajectory_log_probs(generation, batch, written.trace, seeds)
    log_p = torch.zeros(rows, dtype=torch.float64).index_add(0, written.trace.row, found.log_prob)[first]
    (gradient,) = torch.autograd.grad((log_p.detach().exp() * reward * log_p).sum(), network.table)

    def value(cells: Cells) -> Tensor:
        places = [place for place, token in enumerate(cells) if token == MASK]
        if not places:
            return reward[FULL.index(cells)]
        code = sum(token * VOCABULARY**place for place, token in enumerate(cells))
        p = network.table[code][:, list(ORDINARY)].softmax(-1)
        best = (
            max(places, key=lambda place: float(p[place].detach().max()))
            if rule.rank == "top_prob"
            else places[0]
        )
        options = ((*cells[:best], token, *cells[best + 1 :]) for token in ORDINARY)
        return sum((p[best, number] * value(after) for number, after in enumerate(options)), torch.zeros(()))

    (expected,) = torch.autograd.grad(value(START), network.table)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_a_trace_of_another_sampler_is_refused() -> None:
    generation = generation_of(Rule("random", "count"), TableNetwork())
    batch, seeds = prompt_batch(START, 20), torch.arange(20)
    trace = record(generation, batch, seeds).trace
    with pytest.raises(ValueError, match="writes other cells"):
        trajectory_log_probs(generation, batch, trace, seeds + 1)


def test_windows_are_scored_as_they_are_generated() -> None:
    network = TableNetwork(length=3)
    generation = replace(generation_of(Rule("left_to_right", "count"), network), window_length=3, stride=1)
    whole = score(generation_of(Rule("left_to_right", "count"), network), FULL)
    assert torch.equal(score(generation, FULL).nll, whole.nll)


@pytest.mark.parametrize("rule", BY_TOKENS, ids=name_of)
def test_an_order_that_depends_on_drawn_tokens_is_refused(rule: Rule) -> None:
    generation = generation_of(rule, TableNetwork())
    with pytest.raises(ValueError, match="a text has no likelihood by replay under rank="):
        score(generation, FULL[:2])
    with pytest.raises(ValueError, match="a trajectory has no likelihood by replay under rank="):
        record(generation, prompt_batch(START, 2), torch.arange(2))


def test_texts_that_cannot_be_and_options_out_of_range() -> None:
    generation = generation_of(Rule("left_to_right", "count"), TableNetwork())
    found = score(generation, [(2, END, 3), (2, 3), (2, 3, 4)], may_end=True)
    assert found.nll.isinf().tolist() == [True, False, False]
    assert score(generation, [(2, 3), (2, 3, 4)]).nll.isinf().tolist() == [True, False], "no end is possible"
    with pytest.raises(ValueError, match="target 0 differs from the given token at position 1"):
        score(generation, [(2, 2, 2)], start=(MASK, 3, MASK))
    with pytest.raises(ValueError, match="target 0 differs from the given token at position 2"):
        score(generation, [(2, 2)], start=(MASK, MASK, 3), may_end=True)
    ended = score(generation, [(2, 2)], start=(MASK, MASK, END), may_end=True)
    assert ended.nll.isfinite().all()
    assert ended.num_tokens.tolist() == [2]
    for options, message in (
        ({"num_draws": 0}, "num_draws must be at least 1"),
        ({"event": "tokens"}, "event(.|\n)*'text'.*'cells'"),  # or refused by its annotation
        ({"coupling": "all"}, "coupling(.|\n)*'independent'.*'rotations'"),
        ({"coupling": "rotations"}, "coupling='rotations' rotates a random order of single cells"),
    ):
        with pytest.raises((ValueError, TypeCheckError), match=message):
            score(generation, [(2, 3, 4)], **options)  # pyright: ignore[reportArgumentType]  # misfits


def test_states_of_a_plan_share_calls_of_the_network() -> None:
    rule, network = Rule("random", "hitting"), TableNetwork()
    found = score(generation_of(rule, network), FULL)
    assert len(network.rows) == 1
    assert sum(network.rows) == int(found.nfe.sum()) == 3 * len(FULL)
    compose("ancestral")


SAMPLINGS = [TokenSampling(), TokenSampling(0.7, 3, 0.8), TokenSampling(0.0)]
ROW = torch.tensor([2, 0, 2, 1])
COLUMN = torch.tensor([1, 3, 0, 2])
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
UNIFORMS = uniform(row_seeds(0, 0, torch.arange(4)), 1, step=1, stream=0)[:, 0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_recording_changes_no_token_and_forcing_them_gives_the_recorded_log_probabilities(
    sampling: TokenSampling,
):
    recorded = Recorded(sampling)
    writers: list[Writer] = [Draw(sampling), recorded]
    drawn, tokens = (writer.write(ROW, COLUMN, LOGITS, UNIFORMS) for writer in writers)
    assert torch.equal(drawn, tokens)
    assert torch.equal(recorded.notes.log_prob[0], sampling.log_probs(LOGITS)[torch.arange(4), tokens])
    entropies = [
        -sum(p * math.log(p) for p in row if p > 0) for row in sampling.log_probs(LOGITS).exp().tolist()
    ]
    assert recorded.entropy[0].tolist() == pytest.approx(entropies, abs=1e-12)

    ids = torch.zeros(3, 4, dtype=torch.int64)
    ids[ROW, COLUMN] = tokens
    force = Force(sampling, ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.equal(force.write(ROW, COLUMN, LOGITS, UNIFORMS), tokens)
    expected = torch.zeros(3, dtype=torch.float64).index_add(
        0, recorded.notes.row[0], recorded.notes.log_prob[0]
    )
    assert torch.equal(force.log_probs, expected)
    assert not force.is_latent.any()


def test_latent_cells_are_drawn_with_their_own_numbers_and_are_no_factor():
    sampling = TokenSampling()
    ids, known = torch.full((3, 4), 4), torch.zeros(3, 4, dtype=torch.bool)
    known[2, 1] = known[1, 2] = True
    force = Force(sampling, ids, known)
    tokens = force.write(ROW, COLUMN, LOGITS, UNIFORMS)
    drawn = sampling.draw(LOGITS, UNIFORMS)
    assert tokens.tolist() == [4, int(drawn[1]), int(drawn[2]), 4]
    log_probs = sampling.log_probs(LOGITS)[:, 4]
    assert force.log_probs.tolist() == [0.0, float(log_probs[3]), float(log_probs[0])]
    assert force.is_latent.tolist() == [True, False, True]


def test_an_impossible_token_makes_the_text_impossible():
    sampling = TokenSampling(top_k=1)
    worst = LOGITS.argmin(-1)
    ids = torch.zeros(3, 4, dtype=torch.int64)
    ids[ROW, COLUMN] = worst
    force = Force(sampling, ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.equal(force.write(ROW, COLUMN, LOGITS, UNIFORMS), worst)
    assert force.log_probs.tolist() == [-math.inf] * 3


def test_the_least_gap_of_each_row_is_kept():
    force = Force(TokenSampling(), torch.zeros(3, 1).long(), torch.zeros(3, 1).bool())
    force.note_gap(torch.tensor([0, 2]), lambda: torch.tensor([0.5, 0.25]))
    force.note_gap(torch.tensor([2, 0]), lambda: torch.tensor([0.125, 0.75]))
    assert force.smallest_gap.tolist() == [0.5, math.inf, 0.125]


def test_given_tokens_take_each_of_their_places_as_often() -> None:
    given, target, is_open = [1, 2], [1, 2, 1, 2, 2], [True, True, False]
    fits = [(0, 4), (2, 4)]  # the slot behind the last one is closed, so it ends the text
    found = [draw_places(given, is_open, target, [first, 0.5]) for first in (0.25, 0.75)]
    assert [(tuple(places), number) for places, number in found] == [(places, len(fits)) for places in fits]
    # 1,200 places for 600 equal tokens: more choices than a float can count.
    places, number = draw_places([1] * 600, [True] * 601, [1] * 1200, [0.5] * 600)
    assert number == math.comb(1200, 600)
    assert places == sorted(set(places))
