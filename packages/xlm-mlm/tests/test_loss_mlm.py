"""The loss against a computation cell by cell in numpy and against reference vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import load_file
from torch import Tensor, nn

from xlm_mlm import MLM, MLMBatch, MLMCollator, MLMExample, MLMLikelihoodCollator, MLMLoss, MLMMetrics

PAD, CLS, MASK, EOS, BOS = range(5)
VECTORS = load_file(Path(__file__).parent / "data" / "mlm.safetensors")


class FixedLogits(nn.Module):
    """Answers with given logits (rows, length, vocab), and records the requested cells."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.positions = torch.empty(0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, positions: Tensor) -> Tensor:
        self.positions = positions
        return self.logits.flatten(0, 1)[positions]


def batch_of(
    target_ids: Tensor, masked: Tensor, *, may_end: bool = True, attention_mask: Tensor | None = None
) -> MLMBatch:
    attention_mask = torch.ones_like(masked) if attention_mask is None else attention_mask.bool()
    rows = len(masked)
    return {
        "input_ids": target_ids.masked_fill(masked, MASK),
        "attention_mask": attention_mask,
        "target_ids": target_ids,
        "masked": masked,
        "masked_row": masked.nonzero()[:, 0],
        "masked_column": masked.nonzero()[:, 1],
        "may_end": attention_mask & may_end,
        "prompt_length": torch.zeros(rows, dtype=torch.int64),
        "num_eligible": attention_mask.sum(1),
        "num_tokens": attention_mask.sum(1),
        "models_length": torch.full((rows,), may_end),
        "num_draws": torch.tensor(1),
    }


def cross_entropy(logits: Tensor, token: int, impossible: set[int]) -> float:
    """-log softmax over the possible ids, in numpy."""
    values = logits.detach().double().numpy()
    possible = [index for index in range(len(values)) if index not in impossible]
    return float(np.log(np.exp(values[possible]).sum()) - values[token])


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


TARGETS = torch.tensor([[5, 6, 7, 8, 5], [6, 6, 7, EOS, PAD], [8, 7, 6, 5, 5], [5, 6, 7, 5, 6]])
MASKED = torch.tensor(
    [[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool
)  # row 2 has no mask


@pytest.mark.parametrize("suppressed_ids", [(), (CLS, BOS), (PAD, CLS, MASK, EOS, BOS)])
def test_loss_is_the_cross_entropy_of_masked_cells(logits: Tensor, suppressed_ids: tuple[int, ...]) -> None:
    model = FixedLogits(logits)
    batch = batch_of(TARGETS, MASKED)
    # EOS and PAD stay possible where the text may end, even if they are listed.
    impossible = {MASK, *suppressed_ids} - {EOS, PAD}
    cells = [
        [cross_entropy(logits[row, column], int(TARGETS[row, column]), impossible) for column in columns]
        for row, columns in enumerate([[0, 2, 3], [1, 3, 4], [], [4]])
    ]
    by_cell = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=suppressed_ids)(model, batch)
    assert float(by_cell.loss_sum.detach()) == pytest.approx(sum(map(sum, cells)), rel=1e-12)
    assert int(by_cell.loss_count) == 7
    assert model.positions.tolist() == [0, 2, 3, 6, 8, 9, 19], "logits at other cells than the masked ones"

    by_row = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=suppressed_ids, normalise="rows")(
        model, batch
    )
    means = [sum(row) / len(row) for row in cells if row]
    assert float(by_row.loss_sum.detach()) == pytest.approx(sum(means), rel=1e-12)
    assert int(by_row.loss_count) == 4, "the row without masks counts"
    for output in (by_cell, by_row):
        assert output.terms == {"token": output.loss_sum}


def test_eos_and_pad_are_impossible_where_the_text_cannot_end(logits: Tensor) -> None:
    masked = MASKED.clone()
    masked[1] = False
    cells = [(0, 0), (0, 2), (0, 3), (3, 4)]
    for eos_id, impossible in ((EOS, {MASK, PAD, EOS}), (None, {MASK, PAD})):
        loss = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=eos_id)
        output = loss(FixedLogits(logits), batch_of(TARGETS, masked, may_end=False))
        expected = sum(cross_entropy(logits[cell], int(TARGETS[cell]), impossible) for cell in cells)
        assert float(output.loss_sum.detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("normalise", ["masked_cells", "rows"])
def test_no_masks_at_all(logits: Tensor, normalise: str) -> None:
    assert normalise in ("masked_cells", "rows")
    model = FixedLogits(logits)
    loss = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, normalise=normalise)
    output = loss(model, batch_of(TARGETS, torch.zeros_like(MASKED)))
    assert float(output.loss_sum.detach()) == 0.0
    assert int(output.loss_count) == (0 if normalise == "masked_cells" else 4)
    output.loss_sum.backward()
    assert model.logits.grad is not None
    assert not model.logits.grad.any()


def test_rows_without_cells_are_not_counted(logits: Tensor) -> None:
    batch = batch_of(TARGETS, MASKED)
    batch["num_eligible"] = torch.tensor([5, 5, 0, 5])
    output = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, normalise="rows")(FixedLogits(logits), batch)
    assert int(output.loss_count) == 3


@pytest.mark.parametrize(
    ("token", "may_end", "suppressed_ids"),
    [(MASK, True, ()), (7, True, (7,)), (EOS, False, ()), (PAD, False, ())],
)
def test_impossible_targets_are_refused(
    logits: Tensor, token: int, may_end: bool, suppressed_ids: tuple[int, ...]
) -> None:
    targets = TARGETS[:1].clone()
    targets[0, 2] = token
    loss = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=suppressed_ids)
    with pytest.raises(ValueError, match=f"a cell holds token id {token}, which is impossible there"):
        loss(FixedLogits(logits), batch_of(targets, MASKED[:1], may_end=may_end))


def test_options_outside_their_range_are_refused() -> None:
    # By beartype instead, where it checks the signatures.
    with pytest.raises((ValueError, TypeCheckError), match="tokens"):
        MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, normalise="tokens")  # pyright: ignore[reportArgumentType]  # on purpose
    with pytest.raises(ValueError, match="mask_id must differ from pad_id and eos_id"):
        MLMLoss(mask_id=PAD, pad_id=PAD, eos_id=EOS)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_loss_of_the_reference_but_for_mask(dtype: torch.dtype, tolerance: float) -> None:
    """The reference also gives MASK a probability p, which costs -log(1 - p) per cell; here it has none."""
    masked = VECTORS["in.xt"] == MASK
    batch = batch_of(VECTORS["in.x0"], masked, attention_mask=VECTORS["in.attention_mask"])
    logits = VECTORS["in.logits"].to(dtype)
    output = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS)(FixedLogits(logits), batch)
    leaked = -np.log1p(-logits.double().softmax(-1)[masked][:, MASK].numpy()).mean()
    assert leaked > 0.005
    reference = float(VECTORS["xlm.default.loss." + ("f64" if dtype == torch.float64 else "f32")])
    mean = float(output.loss_sum.detach()) / int(output.loss_count)
    assert mean + leaked == pytest.approx(reference, rel=tolerance)


def test_batch_without_masks_costs_nothing_as_in_the_reference() -> None:
    batch = batch_of(VECTORS["in.x0"], torch.zeros(3, 6, dtype=torch.bool))
    output = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS)(FixedLogits(VECTORS["in.logits"]), batch)
    assert float(output.loss_sum.detach()) == float(VECTORS["xlm.no_mask_batch.loss.f64"]) == 0.0


def test_metrics_count_cells_of_all_batches(logits: Tensor) -> None:
    metrics = MLMMetrics()
    assert metrics.compute() == {"masked_accuracy": 0.0, "mean_mask_rate": 0.0}
    loss = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS)
    for rows in (slice(0, 1), slice(1, 4)):
        metrics.update(loss(FixedLogits(logits[rows]), batch_of(TARGETS[rows], MASKED[rows])))
    guesses = np.where(np.arange(9) == MASK, -np.inf, logits.numpy()).argmax(-1)
    right = int((guesses == TARGETS.numpy())[MASKED.numpy()].sum())
    assert 0 < right < 7
    assert metrics.compute() == {"masked_accuracy": right / 7, "mean_mask_rate": 7 / 20}
    metrics.reset()
    assert metrics.compute() == {"masked_accuracy": 0.0, "mean_mask_rate": 0.0}


def test_rates_of_the_collator_average_to_one_half() -> None:
    examples: list[MLMExample] = [{"seed": seed, "target_ids": torch.full((6,), 5)} for seed in range(2000)]
    batch = MLMCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS)(examples)
    metrics = MLMMetrics()
    metrics.update(MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS)(FixedLogits(torch.zeros(2000, 7, 9)), batch))
    # The share of masks in a row has variance 1/12 + 1/36.
    assert metrics.compute()["mean_mask_rate"] == pytest.approx(0.5, abs=4 * (1 / 9 / 2000) ** 0.5)


def test_documents_of_a_packed_block_do_not_see_each_other() -> None:
    """Each has the loss that it has alone in a row, and the likelihood bound of the block is their sum."""
    model = MLM(vocab_size=9, d_model=16, num_layers=2, num_heads=2).double().eval()
    documents = [torch.tensor([BOS, 5, 6, EOS]), torch.tensor([BOS, 7, 7, 8, EOS]), torch.tensor([6, 8])]
    segments = torch.arange(3).repeat_interleave(torch.tensor([4, 5, 2]))
    block: MLMExample = {"seed": 3, "target_ids": torch.cat(documents), "segment_ids": segments}
    collate = MLMLikelihoodCollator(pad_id=PAD, mask_id=MASK, bos_id=None, eos_id=None, num_draws=4)
    batch = collate([block, {"seed": 1, "target_ids": documents[0], "segment_ids": segments[:4]}])
    loss = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=None)
    entropy = torch.zeros(8, dtype=torch.float64)
    for row, ids in enumerate(batch["input_ids"]):
        for number, document in enumerate(documents if row < 4 else documents[:1]):
            own = ids[: len(segments)][(segments == number) & (torch.arange(len(segments)) < len(ids))]
            log_probs = model(own.unsqueeze(0))[0].index_fill(1, torch.tensor([PAD, MASK]), -torch.inf)
            right = log_probs.log_softmax(1)[torch.arange(len(own)), document]
            entropy[row] -= right[own == MASK].sum().detach()
    torch.testing.assert_close(loss(model, batch).loss_sum.detach(), entropy.sum(), rtol=1e-12, atol=0)
    expected = (entropy * batch.get("likelihood_weight", entropy)).view(2, 4).mean(1)
    torch.testing.assert_close(loss.likelihood(model, batch).nll.detach(), expected, rtol=1e-12, atol=0)
