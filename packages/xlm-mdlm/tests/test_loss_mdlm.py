"""The loss against the authors' code and against the bound by enumeration, under every schedule."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm.modules import Cosine, CosineSquared, Geometric, Linear, LogLinear, NoiseSchedule, Polynomial, Sine
from xlm_mdlm import MDLMBatch, MDLMExample, MDLMLikelihoodCollator, MDLMLoss, MDLMMetrics, MDLMRotary

from .exact_mdlm import BOS, EOS, FIRST, MASK, PAD, TableNetwork, bound_by_order, masked_batch, subsets

TEXT_IDS = range(FIRST, FIRST + 3)
TARGET = (FIRST + 1, FIRST, FIRST + 2)
LOSS = MDLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=[BOS])


class FixedLogits(nn.Module):
    """Answers with given logits (rows, length, vocab), and records the requested cells."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.positions = torch.empty(0)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, noise: Tensor, *, positions: Tensor
    ) -> Tensor:
        self.positions = positions
        return self.logits.flatten(0, 1)[positions]


def official_batch(reference: Mapping[str, Tensor]) -> MDLMBatch:
    real = reference["in.attention_mask"].bool()
    masked = reference["in.xt"] == 2
    return {
        "input_ids": reference["in.xt"],
        "attention_mask": real,
        "target_ids": reference["in.x0"],
        "masked": masked,
        "masked_row": masked.nonzero()[:, 0],
        "masked_column": masked.nonzero()[:, 1],
        "may_end": real,
        "prompt_length": torch.zeros(3, dtype=torch.int64),
        "weight": 1 / reference["in.t"],
        "noise": -(1 - 0.999 * reference["in.t"]).log(),
        "num_eligible": real.sum(1),
        "num_tokens": real.sum(1),
        "models_length": torch.ones(3, dtype=torch.bool),
    }


@pytest.mark.parametrize(("precision", "rtol"), [("f64", 1e-6), ("f32", 1e-4)])
def test_loss_of_the_authors_code(reference: dict[str, Tensor], precision: str, rtol: float) -> None:
    logits = reference["in.logits"].to({"f64": torch.float64, "f32": torch.float32}[precision])
    model, batch = FixedLogits(logits), official_batch(reference)
    output = MDLMLoss(mask_id=2, pad_id=0, eos_id=3)(model, batch)
    summed = reference[f"official.nlls_masked_by_attention.{precision}"].sum()
    torch.testing.assert_close(output.loss_sum.detach().to(summed.dtype), summed, rtol=rtol, atol=0)
    mean = (output.loss_sum / output.loss_count).detach()
    official = reference[f"official.loss.{precision}"]
    torch.testing.assert_close(mean.to(official.dtype), official, rtol=rtol, atol=0)
    assert int(output.loss_count) == 15, "all real tokens, masked or not"
    assert model.positions.tolist() == batch["masked"].flatten().nonzero().squeeze(1).tolist()


def test_mask_has_no_probability(reference: dict[str, Tensor]) -> None:
    batch = official_batch(reference)
    loss = MDLMLoss(mask_id=2, pad_id=0, eos_id=3)
    logits = reference["in.logits"].double()
    certain_of_mask = logits.clone()
    certain_of_mask[..., 2] = 50.0
    model = FixedLogits(certain_of_mask)
    output = loss(model, batch)
    assert torch.equal(output.loss_sum, loss(FixedLogits(logits), batch).loss_sum)
    output.loss_sum.backward()
    assert model.logits.grad is not None
    assert not model.logits.grad[..., 2].any()
    assert not model.logits.grad[~batch["masked"]].any(), "unmasked cells are copied, so they cost nothing"


COMPLETE: list[NoiseSchedule] = [
    LogLinear(eps=0.0),
    Cosine(eps=0.0),
    CosineSquared(eps=0.0),
    Sine(),
    Polynomial(2.0),
    Polynomial(3.0),
]


def expected_loss(model: TableNetwork, schedule: NoiseSchedule, *, start: float = 0.0) -> float:
    """E_t E_{x_t} of the loss at t ~ U(start, 1), by Gauss-Legendre quadrature over t and all sets of
    masks."""
    nodes, shares = np.polynomial.legendre.leggauss(60)
    t = torch.tensor(start + (1 - start) * (nodes + 1) / 2)
    share = torch.tensor(shares / 2)
    alpha, density = schedule.alpha(t), share * schedule.loss_weight(t)
    places = subsets(range(len(TARGET)))[1:]
    weights = [
        float((density * (1 - alpha) ** len(chosen) * alpha ** (len(TARGET) - len(chosen))).sum())
        for chosen in places
    ]
    return float(LOSS(model, masked_batch(TARGET, places, weights)).loss_sum)


@pytest.mark.parametrize("schedule", COMPLETE, ids=repr)
def test_expected_loss_is_the_bound_whatever_the_schedule(schedule: NoiseSchedule) -> None:
    model = TableNetwork(length=3, vocab_size=FIRST + 3, seed=1)
    bound = bound_by_order(model.prediction(TEXT_IDS), (MASK,) * 3, TARGET)
    assert expected_loss(model, schedule) == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), CosineSquared()], ids=repr)
def test_a_small_eps_costs_little(schedule: NoiseSchedule) -> None:
    """A schedule that ends at alpha = 1e-3 misses the part of the integral at rates above 1 - 1e-3."""
    model = TableNetwork(length=3, vocab_size=FIRST + 3, seed=1)
    bound = bound_by_order(model.prediction(TEXT_IDS), (MASK,) * 3, TARGET)
    assert bound * (1 - 2e-3) < expected_loss(model, schedule) < bound


def test_times_from_one_thousandth_on_cost_a_thousandth() -> None:
    """The published sampling_eps, which MDLMCollator has as min_time."""
    model = TableNetwork(length=3, vocab_size=FIRST + 3, seed=1)
    bound = bound_by_order(model.prediction(TEXT_IDS), (MASK,) * 3, TARGET)
    assert expected_loss(model, LogLinear(eps=0.0), start=1e-3) == pytest.approx(bound, rel=2e-3)


@pytest.mark.parametrize("schedule", [Linear(0.0, 1.0), Geometric(1e-3, 1.0)], ids=repr)
def test_incomplete_schedules_see_a_part_of_the_bound(schedule: NoiseSchedule) -> None:
    """With alpha(1) = e^-1 masks above a rate of 63 per cent never occur: no likelihood."""
    model = TableNetwork(length=3, vocab_size=FIRST + 3, seed=1)
    bound = bound_by_order(model.prediction(TEXT_IDS), (MASK,) * 3, TARGET)
    assert not schedule.is_complete
    assert expected_loss(model, schedule) < 0.8 * bound


def test_impossible_targets_are_refused() -> None:
    model = TableNetwork(length=3, vocab_size=FIRST + 3, seed=1)
    for token, batch in {
        BOS: masked_batch((BOS, FIRST, FIRST), [(0,)], [1.0]),
        EOS: masked_batch((FIRST, EOS, FIRST), [(1,)], [1.0]),
    }.items():
        with pytest.raises(ValueError, match=f"token id {token}, which is impossible"):
            LOSS(model, batch)
    assert LOSS(model, masked_batch((FIRST, EOS, PAD), [(1, 2)], [1.0], may_end=True)).loss_sum > 0


def test_mask_that_is_also_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_id must differ"):
        MDLMLoss(mask_id=0, pad_id=0, eos_id=3)


def test_counts_of_the_loss_and_their_metrics() -> None:
    """Rows with 0, 1, 2 and 3 of 3 cells masked fall into the levels (0, 25], (25, 50], (50, 75], (75,
    100]."""
    model = TableNetwork(length=3, vocab_size=FIRST + 3, seed=1)
    predict = model.prediction(TEXT_IDS)
    rows: list[tuple[int, ...]] = [(), (1,), (0, 2), (0, 1, 2)]
    output = LOSS(model, masked_batch(TARGET, rows, [7.0] * 4))
    predictions = [
        [(predict(cells, place), TARGET[place]) for place in places]
        for places in rows
        for cells in [tuple(MASK if i in places else token for i, token in enumerate(TARGET))]
    ]
    entropies = [sum(-math.log(distribution[token]) for distribution, token in row) for row in predictions]
    assert output.entropy_by_level.tolist() == pytest.approx([0.0, *entropies[1:]], rel=1e-12)
    assert output.masked_by_level.tolist() == [0, 1, 2, 3]
    assert float(output.loss_sum) == pytest.approx(7 * sum(entropies), rel=1e-12)
    right = sum(
        max(distribution, key=distribution.__getitem__) == token
        for distribution, token in itertools.chain(*predictions)
    )
    assert (int(output.num_correct), int(output.num_masked), int(output.loss_count)) == (right, 6, 12)

    metrics = MDLMMetrics()
    assert set(metrics.compute().values()) == {0.0}
    for _ in range(2):
        metrics.update(output)
    assert metrics.compute() == pytest.approx(
        {
            "masked_accuracy": right / 6,
            "mean_mask_rate": 0.5,
            "entropy_0_25": 0.0,
            "entropy_25_50": entropies[1],
            "entropy_50_75": entropies[2] / 2,
            "entropy_75_100": entropies[3] / 3,
        }
    )
    assert all(total.ndim == 0 and not total.requires_grad for total in metrics.sums.values())
    metrics.reset()
    assert not any(total.any() for total in metrics.sums.values())


def test_documents_of_a_packed_block_do_not_see_each_other() -> None:
    """Each has the loss that it has alone in a row, and the likelihood bound of the block is their sum."""
    model = MDLMRotary(vocab_size=9, d_model=16, num_layers=2, num_heads=2).double().eval()
    documents = [torch.tensor([BOS, 5, 6, EOS]), torch.tensor([BOS, 7, 7, 8, EOS]), torch.tensor([6, 8])]
    segments = torch.arange(3).repeat_interleave(torch.tensor([4, 5, 2]))
    block: MDLMExample = {"seed": 3, "target_ids": torch.cat(documents), "segment_ids": segments}
    collate = MDLMLikelihoodCollator(mask_id=MASK, pad_id=PAD, bos_id=None, eos_id=None, num_draws=4)
    batch = collate([block, {"seed": 1, "target_ids": documents[0], "segment_ids": segments[:4]}])
    loss = MDLMLoss(mask_id=MASK, pad_id=PAD, eos_id=None)
    bounds = torch.zeros(8, dtype=torch.float64)
    for row, ids in enumerate(batch["input_ids"]):
        for number, document in enumerate(documents if row < 4 else documents[:1]):
            own = ids[: len(segments)][(segments == number) & (torch.arange(len(segments)) < len(ids))]
            log_probs = model(own.unsqueeze(0))[0].index_fill(1, torch.tensor([PAD, MASK]), -math.inf)
            right = log_probs.log_softmax(1)[torch.arange(len(own)), document]
            bounds[row] -= batch["weight"][row] * right[own == MASK].sum().detach()
    torch.testing.assert_close(loss(model, batch).loss_sum.detach(), bounds.sum(), rtol=1e-12, atol=0)
    nll = loss.likelihood(model, batch).nll.detach()
    torch.testing.assert_close(nll, bounds.view(2, 4).mean(1), rtol=1e-12, atol=0)
