"""The training loss against the published code and formulas in numpy; the posterior, enumerated."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm.modules import Cosine, LogLinear, Polynomial, Sine
from xlm_flexmdm import (
    FlexMDMBatch,
    FlexMDMCollator,
    FlexMDMLoss,
    FlexMDMLossOutput,
    FlexMDMMetrics,
    FlexMDMOutput,
    Interpolant,
    embedding_posterior,
    expected_gaps,
    gap_divergence,
)

from .exact_flexmdm import FIRST, Noising, at_times, batch_of, noisings
from .exact_flexmdm import MASK as HIDDEN

PAD, MASK, BOS = 0, 2, 4
UNUSED = 11
"""An id that no row holds."""
LINEAR = LogLinear(eps=0)
SCHEDULES = {
    "lin_lin": Interpolant(LINEAR, LINEAR),
    "sin_lin": Interpolant(Cosine(eps=0), LINEAR),
    "poly2_cos": Interpolant(Polynomial(2.0), Sine()),
}
Reference = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _GivenTimes(Interpolant):
    """An interpolant whose T1 and T2 are given."""

    insertion_time: Tensor
    unmask_time: Tensor
    at: Tensor

    def states(
        self, t: Tensor, insertion_uniforms: Tensor, unmasking_uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        present = self.insertion_time <= self.at
        return present, present & (self.at < self.unmask_time)


def _reference_batch(reference: Reference, interpolant: Interpolant) -> FlexMDMBatch:
    at = reference["in.t"].double()
    states = _GivenTimes(
        insertion=LINEAR,
        unmasking=LINEAR,
        insertion_time=reference["in.insertion_time"],
        unmask_time=reference["in.unmask_time"],
        at=reference["in.t"].unsqueeze(1),
    )
    collate = FlexMDMCollator(interpolant=states, pad_id=PAD, mask_id=MASK, bos_id=BOS)
    lengths = (reference["in.x1"] != PAD).sum(1)
    rows = zip(reference["in.x1"], lengths, strict=True)
    batch = collate([{"seed": n, "target_ids": row[:length]} for n, (row, length) in enumerate(rows)])
    return {
        **batch,
        "time": at,
        "missing_chance": 1 - interpolant.alpha(at),
        "unmasking_weight": interpolant.unmasking_hazard(at),
        "insertion_weight": interpolant.insertion_hazard(at),
    }


class _GivenOutputs(nn.Module):
    """A network whose outputs are given for each column; BOS is the first."""

    def __init__(self, token_logits: Tensor, gaps: Tensor, gap_logits: Tensor | None = None) -> None:
        super().__init__()
        # A column for UNUSED: the published softmax goes over all ids, MASK among them.
        unused = (0, UNUSED + 1 - token_logits.shape[2])
        token_logits = nn.functional.pad(token_logits, unused, value=-torch.inf)
        no_logits = torch.zeros_like(token_logits[:, :1])
        self.token_logits = torch.cat((no_logits, token_logits), dim=1)
        self.gaps, self.gap_logits = gaps, gap_logits

    def forward(
        self,
        input_ids: Tensor,
        time: Tensor,
        missing_chance: Tensor,
        attention_mask: Tensor,
        *,
        token_positions: Tensor,
        slot_positions: Tensor,
    ) -> FlexMDMOutput:
        width = input_ids.shape[1]
        tokens = self.token_logits[:, :width].flatten(0, 1)[token_positions]
        gaps = self.gaps[:, :width].flatten()[slot_positions]
        if self.gap_logits is None:
            return FlexMDMOutput(tokens, gaps, None)
        return FlexMDMOutput(tokens, gaps, self.gap_logits[:, :width].flatten(0, 1)[slot_positions])


def test_rows_are_those_of_the_reference(reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES["lin_lin"])
    width = batch["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, 1:], reference["official.xt"][:, : width - 1])
    assert torch.equal(batch["attention_mask"].sum(1) - 1, reference["official.xt_len"])
    slots = reference["official.gaps_mask"][:, :width].bool()
    assert torch.equal(batch["open_slots"], slots)
    assert torch.equal(batch["gaps"][slots], reference["official.gaps"][:, :width][slots])
    targets = reference["official.unmask_targets"][:, : width - 1]
    masked = batch["masked"][:, 1:]
    assert torch.equal(masked, batch["input_ids"][:, 1:] == MASK)
    assert torch.equal(batch["clean_ids"][:, 1:][masked], targets[masked])
    assert torch.equal(batch["gaps"].sum(1) + reference["official.xt_len"], batch["target_lengths"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_and_rates_are_those_of_the_reference(name: str, reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES[name])
    for ours, theirs in (("unmasking_weight", "unmask_weight"), ("insertion_weight", "insert_weight")):
        torch.testing.assert_close(batch[ours], reference[f"official.{name}.{theirs}.f64"], rtol=1e-6, atol=0)
    rate = batch["insertion_weight"].unsqueeze(1) * reference["in.expected_gaps"].double()
    torch.testing.assert_close(rate, reference[f"official.{name}.length_rate.f64"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("with_distribution", [False, True])
def test_half_precision_outputs_are_summed_in_float32(with_distribution: bool, reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES["lin_lin"])
    tokens, gaps, distribution = (
        reference[f"in.{name}"].bfloat16() for name in ("token_logits", "expected_gaps", "length_logits")
    )
    output = FlexMDMLoss(mask_id=UNUSED)(
        _GivenOutputs(tokens, gaps, distribution if with_distribution else None), batch
    )
    wide = _GivenOutputs(tokens.float(), gaps.float(), distribution.float() if with_distribution else None)
    assert output.terms == FlexMDMLoss(mask_id=UNUSED)(wide, batch).terms


@pytest.mark.parametrize("name", SCHEDULES)
def test_expectation_loss_is_that_of_the_reference(name: str, reference: Reference) -> None:
    """The reference keeps both arguments of D above 1e-6, here only the logarithm is bounded.

    Where neither is below, the sums agree; where one is, they differ by what the formula says.
    """
    batch = _reference_batch(reference, SCHEDULES[name])
    gaps = reference["in.expected_gaps"].double()
    model = _GivenOutputs(reference["in.token_logits"].double(), gaps.clamp(min=1e-6))
    output = FlexMDMLoss(mask_id=UNUSED)(model, batch)
    published_count = reference["in.x1"].numel()
    unmasking = output.terms["unmasking"] / published_count
    expected = reference[f"official.{name}.expectation.unmask_loss.f64"]
    torch.testing.assert_close(unmasking, expected, rtol=1e-6, atol=0)

    x, y = reference["official.gaps"].double().numpy(), gaps.clamp(min=1e-6).numpy()
    floored = np.maximum(x, 1e-6)
    theirs = y - floored + floored * np.log(floored / y)
    ours = np.where(x > 0, theirs, y)
    weights = SCHEDULES[name].insertion_hazard(reference["in.t"].double()).unsqueeze(1).numpy()
    slots = reference["official.gaps_mask"].numpy() * weights / published_count
    assert float(reference[f"official.{name}.expectation.insertion_loss.f64"]) == pytest.approx(
        (slots * theirs).sum(), rel=1e-6
    )
    assert float(output.terms["insertion"]) / published_count == pytest.approx(
        (slots * ours).sum(), rel=1e-12
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_distribution_loss_weights_each_slot(name: str, reference: Reference) -> None:
    """The reference multiplies the mean cross-entropy by the sum of the weights: another number."""
    batch = _reference_batch(reference, SCHEDULES[name])
    logits = reference["in.length_logits"].double()
    gaps = reference["official.expected_gaps_from_distribution.f64"]
    model = _GivenOutputs(reference["in.token_logits"].double(), gaps, logits)
    output = FlexMDMLoss(mask_id=UNUSED)(model, batch)
    count = reference["in.x1"].numel()
    slots = reference["official.gaps_mask"].bool()
    entropy = nn.functional.cross_entropy(logits[slots], reference["official.gaps"][slots], reduction="none")
    weight = batch["insertion_weight"].unsqueeze(1).expand(slots.shape)[slots]
    assert float(output.terms["insertion"]) == pytest.approx(float((weight * entropy).sum()), rel=1e-12)
    theirs = float(reference[f"official.{name}.distribution.insertion_loss.f64"])
    assert float(weight.sum() * entropy.mean()) / count == pytest.approx(theirs, rel=1e-6)
    assert abs(float(output.terms["insertion"]) / count / theirs - 1) > 0.01


def test_divergence(reference: Reference) -> None:
    x, y = reference["in.bregman_x"].double(), reference["in.bregman_y"].double()
    expected = reference["official.bregman.f64"]
    inside = (x >= 1e-6) & (y >= 1e-6)
    assert inside.sum() >= 3
    torch.testing.assert_close(gap_divergence(x[inside], y[inside]), expected[inside], rtol=1e-6, atol=1e-12)


def test_divergence_has_no_floor() -> None:
    y = torch.tensor([0.0, 1e-12, 1e-7, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    found = gap_divergence(torch.zeros_like(y), y)
    assert torch.equal(found, y)
    (slope,) = torch.autograd.grad(found.sum(), y)
    assert torch.equal(slope, torch.ones_like(y))
    assert torch.equal(gap_divergence(y, y), torch.zeros_like(y))
    never = gap_divergence(torch.tensor([2.0, 2.0]), torch.tensor([0.0, 1e-20]))
    assert never.isfinite().all()
    assert never[0] > never[1] > 80


def test_divergence_is_positive() -> None:
    values = torch.tensor([0.0, 0.1, 0.9, 1.0, 2.5, 7.0], dtype=torch.float64)
    found = gap_divergence(values.unsqueeze(1).expand(6, 6), values.expand(6, 6))
    off_diagonal = ~torch.eye(6, dtype=torch.bool)
    assert (found[off_diagonal] > 1e-3).all()


def test_normaliser_is_the_number_of_missing_tokens(reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES["lin_lin"])
    output = _evaluate(batch, reference)
    assert output.loss_count == (reference["in.x1"] != PAD).sum()
    fewer = batch["num_missing"] - 1
    assert _evaluate({**batch, "num_missing": fewer}, reference).loss_count == output.loss_count - 3


def test_closed_slots_are_not_in_the_loss(reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES["lin_lin"])
    open_slots = batch["open_slots"].clone()
    open_slots[1, 0] = False
    gap = reference["in.expected_gaps"].double()[1, 0].clamp(min=1e-6)
    removed = batch["insertion_weight"][1] * gap_divergence(batch["gaps"][1, 0].double(), gap)
    before = _evaluate(batch, reference).terms["insertion"]
    slots = open_slots.nonzero()
    closed: FlexMDMBatch = {
        **batch,
        "open_slots": open_slots,
        "slot_row": slots[:, 0],
        "slot_column": slots[:, 1],
    }
    after = _evaluate(closed, reference).terms["insertion"]
    torch.testing.assert_close(before - after, removed)
    assert removed > 0


def test_suppressed_tokens_stay_outside_the_softmax(reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES["lin_lin"])
    logits = reference["in.token_logits"].double()
    without = logits.clone()
    without[..., [0, 1, 2, 3, 4, 5, 6]] = -torch.inf
    gaps = reference["in.expected_gaps"].double()
    expected = FlexMDMLoss(mask_id=UNUSED)(_GivenOutputs(without, gaps), batch).loss_sum
    found = FlexMDMLoss(mask_id=MASK, suppressed_ids=[0, 1, 3, 4, 5, 6])(
        _GivenOutputs(logits, gaps), batch
    ).loss_sum
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"token id \d+, which has probability 0"):
        FlexMDMLoss(mask_id=MASK, suppressed_ids=range(11))(_GivenOutputs(logits, gaps), batch)


def test_gaps_beyond_the_network_are_refused(reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES["lin_lin"])
    logits = reference["in.length_logits"][..., :2]
    model = _GivenOutputs(reference["in.token_logits"], reference["in.expected_gaps"], logits)
    with pytest.raises(ValueError, match=r"misses \d tokens, the network has lengths 0\.\.1"):
        FlexMDMLoss(mask_id=UNUSED)(model, batch)


@pytest.mark.parametrize("state", [(HIDDEN,), (FIRST, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, FIRST + 1)])
def test_posterior_targets_give_the_mean_gradient_of_all_paths(state: tuple[int, ...]) -> None:
    """Of the sampled paths from a text with equal tokens to a row, enumerated; all are equally likely."""
    text = (FIRST, FIRST, FIRST + 1, FIRST)
    paths = [path for path in noisings(text) if path.state == state]
    assert len(paths) > 1
    one = np.ones(1)
    torch.manual_seed(0)
    logits = torch.randn(1, 4, FIRST + 2, dtype=torch.float64).requires_grad_()
    gaps = torch.rand(1, 5, dtype=torch.float64).requires_grad_()

    def slopes(path: Noising, loss: FlexMDMLoss) -> list[Tensor]:
        batch = at_times(batch_of([path]), one, one, 2 * one, 3 * one)
        output = loss(_GivenOutputs(logits, gaps), batch)
        assert output.loss_count == 4
        return list(torch.autograd.grad(output.loss_sum, (logits, gaps)))

    drawn = zip(*(slopes(path, FlexMDMLoss(mask_id=UNUSED)) for path in paths), strict=True)
    found = slopes(paths[0], FlexMDMLoss(mask_id=UNUSED, targets="posterior"))
    for expected, slope in zip(drawn, found, strict=True):
        torch.testing.assert_close(slope, torch.stack(expected).mean(0), rtol=1e-12, atol=1e-12)


def test_posterior_targets_see_the_mean_of_a_distribution(reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES["lin_lin"])
    tokens, gaps = reference["in.token_logits"].double(), reference["in.expected_gaps"].double()
    loss = FlexMDMLoss(mask_id=UNUSED, targets="posterior")
    with_distribution = _GivenOutputs(tokens, gaps, reference["in.length_logits"].double())
    assert torch.equal(
        loss(with_distribution, batch).loss_sum, loss(_GivenOutputs(tokens, gaps), batch).loss_sum
    )


def test_metrics_add_up_over_batches(reference: Reference) -> None:
    batch = _reference_batch(reference, SCHEDULES["lin_lin"])
    output = _evaluate(batch, reference)
    assert 0 <= output.num_correct <= output.num_masked == batch["masked"].sum()
    metrics = FlexMDMMetrics()
    assert metrics.compute() == {"masked_accuracy": 0.0}
    for _ in range(2):
        metrics.update(output)
    accuracy = int(output.num_correct) / int(output.num_masked)
    assert metrics.compute() == {"masked_accuracy": pytest.approx(accuracy)}
    metrics.reset()
    assert metrics.compute() == {"masked_accuracy": 0.0}


def _evaluate(batch: FlexMDMBatch, reference: Reference) -> FlexMDMLossOutput:
    gaps = reference["in.expected_gaps"].double().clamp(min=1e-6)
    return FlexMDMLoss(mask_id=UNUSED)(_GivenOutputs(reference["in.token_logits"].double(), gaps), batch)


def _embeddings(matches: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> list[tuple[int, ...]]:
    cells, tokens = matches.shape
    return [
        indices
        for indices in itertools.combinations(range(tokens), cells)
        if all(matches[cell, i] for cell, i in enumerate(indices))
    ]


def test_posterior_is_uniform_over_the_embeddings() -> None:
    generator = np.random.default_rng(0)
    rows, cells, tokens = 60, 4, 6
    table = np.zeros((rows, cells, tokens), dtype=bool)
    num_cells, num_tokens = np.zeros((2, rows), dtype=np.int64)
    expected = np.zeros((rows, cells, tokens))
    gaps = np.zeros((rows, cells + 1))
    for row in range(rows):
        num_tokens[row] = generator.integers(0, tokens + 1)
        num_cells[row] = generator.integers(0, min(cells, num_tokens[row]) + 1)
        matches = generator.random((num_cells[row], num_tokens[row])) < 0.6
        # One embedding there is in any case.
        matches[np.arange(num_cells[row]), np.arange(num_cells[row])] = True
        found = _embeddings(matches)
        table[row, : num_cells[row], : num_tokens[row]] = matches
        for indices in found:
            ends = (-1, *indices, int(num_tokens[row]))
            gaps[row, : len(ends) - 1] += (np.diff(ends) - 1) / len(found)
            for cell, i in enumerate(indices):
                expected[row, cell, i] += 1 / len(found)

    sizes = torch.tensor(num_cells), torch.tensor(num_tokens)
    posterior = embedding_posterior(torch.tensor(table), sizes[0])
    np.testing.assert_allclose(posterior.numpy(), expected, atol=1e-13)
    found_gaps = expected_gaps(posterior, *sizes).numpy()
    for row in range(rows):
        slots = num_cells[row] + 1
        np.testing.assert_allclose(found_gaps[row, :slots], gaps[row, :slots], atol=1e-12)


def test_counts_beyond_the_largest_float() -> None:
    """900 masks in 1800 tokens: about 10^540 embeddings; the mean index is that of order statistics."""
    cells, tokens = 900, 1800
    num_cells = torch.tensor([cells])
    posterior = embedding_posterior(torch.ones(1, cells, tokens, dtype=torch.bool), num_cells)
    torch.testing.assert_close(posterior.sum(2), torch.ones(1, cells, dtype=torch.float64))
    gaps = expected_gaps(posterior, num_cells, torch.tensor([tokens]))
    expected = (tokens - cells) / (cells + 1)
    torch.testing.assert_close(
        gaps, torch.full((1, cells + 1), expected, dtype=torch.float64), rtol=1e-8, atol=0
    )


def test_posterior_without_cells_or_tokens() -> None:
    none = torch.tensor([0, 0])
    empty = embedding_posterior(torch.ones(2, 0, 3, dtype=torch.bool), none)
    assert empty.shape == (2, 0, 3)
    assert torch.equal(
        expected_gaps(empty, none, torch.tensor([3, 2])), torch.tensor([[3.0], [2.0]]).double()
    )
    nothing = embedding_posterior(torch.ones(2, 0, 0, dtype=torch.bool), none)
    assert torch.equal(expected_gaps(nothing, none, none), torch.zeros(2, 1, dtype=torch.float64))
