"""The training loss and its metrics, against reference vectors and the plain distribution."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlm.modules import KeyValueCache
from xlm_arlm import ARLM, ARLMBatch, ARLMCollator, ARLMLoss, ARLMMetrics

from .plain_distribution import BOS, EOS, PAD, example, log_prob, log_softmax, packed


class FixedLogits(nn.Module):
    """Stands in for the network: gives known logits (rows, length, vocab) at the cells asked for."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        row, column = positions // input_ids.shape[1], positions % input_ids.shape[1]
        return self.logits[row, column]


def reference_batch(reference: dict[str, Tensor]) -> ARLMBatch:
    """The reference's rows, whose prompts are padded on the left."""
    target_mask = torch.zeros(reference["xlm.input_ids"].shape, dtype=torch.bool)
    target_mask[:, 1:] = reference["derived.target_ids_suffix_only"][:, :-1] >= 0
    real = reference["xlm.attention_mask"].bool()
    given = real & ~target_mask
    given[:, 1:] &= real[:, :-1]
    given[:, 0] = False
    return {
        "input_ids": reference["xlm.input_ids"],
        "attention_mask": real,
        "target_row": target_mask.nonzero()[:, 0],
        "target_column": target_mask.nonzero()[:, 1],
        "given_row": given.nonzero()[:, 0],
        "given_column": given.nonzero()[:, 1],
        "num_tokens": target_mask.sum(1) - 1,
        "models_length": torch.ones(len(target_mask), dtype=torch.bool),
    }


@pytest.mark.parametrize(
    ("dtype", "key", "rtol"), [(torch.float64, "f64", 1e-12), (torch.float32, "f32", 1e-6)]
)
def test_suffix_loss_is_that_of_the_reference(
    reference: dict[str, Tensor], dtype: torch.dtype, key: str, rtol: float
) -> None:
    model = FixedLogits(reference["in.logits"].to(dtype))
    output = ARLMLoss()(model, reference_batch(reference))
    assert int(output.loss_count) == int((reference["derived.target_ids_suffix_only"] >= 0).sum())
    mean = output.loss_sum / output.loss_count
    torch.testing.assert_close(mean, reference[f"xlm.loss_suffix_only.{key}"], rtol=rtol, atol=0)


def test_prompt_loss_is_that_of_the_reference_without_predictions_from_padding(
    reference: dict[str, Tensor],
) -> None:
    """The reference predicts the first token of a prompt from the padding on its left; no family does."""
    logits = reference["in.logits"].to(torch.float64)
    output = ARLMLoss(loss_on_prompt=True)(FixedLogits(logits), reference_batch(reference))
    targets, mask = reference["xlm.target_ids"], reference["xlm.attention_mask"].bool()
    from_padding = (~mask & (targets >= 0)).nonzero().tolist()
    assert len(from_padding) == 3, "one in each row: all rows are padded on the left"
    extra = sum(
        -log_softmax(logits[row, column].numpy())[int(targets[row, column])] for row, column in from_padding
    )
    num_reference = int((targets >= 0).sum())
    assert int(output.loss_count) == num_reference - 3
    expected = float(reference["xlm.loss.f64"]) * num_reference - extra
    assert float(output.loss_sum) == pytest.approx(expected, rel=1e-12)


def test_terms_split_prompt_and_target(model: ARLM, collate: ARLMCollator) -> None:
    batch = collate([example([7, 8], prompt=[9, 10, 9]), example([10, 7, 7, 9], prompt=[8], num_fixed=1)])
    output = ARLMLoss(loss_on_prompt=True)(model, batch)
    target = log_prob(model, [9, 10, 9, BOS], [7, 8, EOS]) + log_prob(model, [8, BOS, 10], [7, 7, 9, EOS])
    prompt = log_prob(model, [9], [10, 9, BOS]) + log_prob(model, [8], [BOS, 10])
    assert output.terms["target"].item() == pytest.approx(-target, rel=1e-12)
    assert output.terms["prompt"].item() == pytest.approx(-prompt, rel=1e-12)
    assert (int(output.loss_count), int(output.num_target)) == (12, 7)
    without = ARLMLoss()(model, batch)
    assert list(without.terms) == ["target"]
    assert without.loss_sum.item() == pytest.approx(-target, rel=1e-12)
    assert int(without.loss_count) == 7


@pytest.mark.parametrize("loss_on_prompt", [False, True])
def test_left_padding_changes_nothing(model: ARLM, collate: ARLMCollator, *, loss_on_prompt: bool) -> None:
    batch = collate([example([7, 8], prompt=[9, 10]), example([7], prompt=[9])])
    loss = ARLMLoss(loss_on_prompt=loss_on_prompt)
    expected = loss(model, batch)
    mask = batch["input_ids"] != PAD
    size = mask.sum(1)
    moved = mask.shape[1] - size

    def to_the_right(table: Tensor) -> Tensor:
        return torch.stack([row.roll(-number) for row, number in zip(table, size.tolist(), strict=True)])

    left: ARLMBatch = {
        "input_ids": to_the_right(batch["input_ids"]),
        "attention_mask": to_the_right(mask),
        "target_row": batch["target_row"],
        "target_column": batch["target_column"] + moved[batch["target_row"]],
        "given_row": batch["given_row"],
        "given_column": batch["given_column"] + moved[batch["given_row"]],
        "num_tokens": batch["num_tokens"],
        "models_length": batch["models_length"],
    }
    assert left["input_ids"][1, 0] == PAD
    output = loss(model, left)
    torch.testing.assert_close(output.loss_sum, expected.loss_sum)
    assert output.loss_count == expected.loss_count


@pytest.mark.parametrize("loss_on_prompt", [False, True])
def test_a_packed_block_has_the_loss_of_its_documents(model: ARLM, *, loss_on_prompt: bool) -> None:
    """No document sees or predicts another; the first token of each is given."""
    first, second, third = [BOS, 7, 8, EOS], [BOS, 10, 9, 7, EOS], [9, 9]
    collate = ARLMCollator(pad_id=PAD, bos_id=None, eos_id=None)
    batch = collate([packed(first, second), packed(third, first)])
    output = ARLMLoss(loss_on_prompt=loss_on_prompt)(model, batch)
    nats = [-log_prob(model, text[:1], text[1:]) for text in (first, second, third)]
    assert output.loss_sum.item() == pytest.approx(2 * nats[0] + nats[1] + nats[2], rel=1e-12)
    assert int(output.loss_count) == 3 + 4 + 1 + 3
    likelihood = ARLMLoss().likelihood(model, batch)
    assert likelihood.nll.tolist() == pytest.approx([nats[0] + nats[1], nats[2] + nats[0]], rel=1e-12)
    assert likelihood.num_tokens.tolist() == [7, 4]
    assert not likelihood.models_length


def test_a_block_without_document_numbers_is_one_text(model: ARLM) -> None:
    collate = ARLMCollator(pad_id=PAD, bos_id=None, eos_id=None)
    block = [BOS, 7, 8, EOS, BOS, 9, 9, EOS]
    batch = collate([example(block)])
    assert batch["attention_mask"] is None
    output = ARLMLoss()(model, batch)
    assert output.loss_sum.item() == pytest.approx(-log_prob(model, block[:1], block[1:]), rel=1e-12)


@pytest.mark.parametrize("eos_id", [-100, 10**6])
def test_a_token_beyond_the_vocabulary_is_refused_where_it_is_only_predicted(
    model: ARLM, eos_id: int
) -> None:
    """The network never reads the last token of the longest row."""
    batch = ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=eos_id)([example([7, 8])])
    for evaluate in (ARLMLoss(), ARLMLoss().likelihood):
        with pytest.raises(ValueError, match=rf"ids are between .*{eos_id}\b.*, those of the vocabulary"):
            evaluate(model, batch)


def test_the_head_is_computed_at_predicted_tokens_only(model: ARLM, collate: ARLMCollator) -> None:
    cells: list[int] = []

    def network(*arguments: Any, positions: Tensor) -> Tensor:
        cells.append(len(positions))
        return model(*arguments, positions=positions)

    ARLMLoss()(network, collate([example([7, 8], prompt=[9, 10, 9]), example([7])]))
    assert cells == [5]


def test_metrics_are_means_over_all_predicted_target_tokens(model: ARLM, collate: ARLMCollator) -> None:
    metrics = ARLMMetrics()
    assert metrics.compute() == {"target_loss": 0.0, "target_perplexity": 0.0}
    loss = ARLMLoss(loss_on_prompt=True)
    for rows in ([example([7, 8], prompt=[9])], [example([10]), example([9, 9, 9], prompt=[7, 7])]):
        metrics.update(loss(model, collate(rows)))
    nats = -sum(
        log_prob(model, given, [*target, EOS])
        for given, target in (([9, BOS], [7, 8]), ([BOS], [10]), ([7, 7, BOS], [9, 9, 9]))
    )
    result = metrics.compute()
    assert result["target_loss"] == pytest.approx(nats / 9, rel=1e-12)
    assert result["target_perplexity"] == pytest.approx(math.exp(nats / 9), rel=1e-12)
    assert all(total.grad_fn is None for total in metrics.sums.values())
    metrics.reset()
    assert metrics.compute()["target_loss"] == 0.0
