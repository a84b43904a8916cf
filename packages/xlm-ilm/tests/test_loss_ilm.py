"""The loss against the published implementation and a dense one, and what it computes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xlm_ilm import ILM, ILMBatch, ILMCollator, ILMExample, ILMLoss, ILMLossMetrics, ILMOutput
from xlm_ilm.loss_ilm import RowWeight


class _FixedLogits(nn.Module):
    """Returns the given logits for all rows."""

    def __init__(self, token_logits: Tensor, stop_logits: Tensor) -> None:
        super().__init__()
        self.token_logits = token_logits
        self.stop_logits = stop_logits

    def forward(self, input_ids: Tensor, mask: Tensor, position_ids: None, *, positions: Tensor) -> ILMOutput:
        logits = self.token_logits.flatten(0, 1)[positions]
        return ILMOutput(token_logits=logits, stop_logits=self.stop_logits)


def _reference_batch(reference: Mapping[str, Tensor]) -> ILMBatch:
    """The published batch with every slot open but that of CLS."""
    mask = reference["xlm.attention_mask"].bool()
    open_slots = mask.clone()
    open_slots[:, 0] = False
    counts = reference["xlm.target_counts"]
    row, slot, token = counts.nonzero(as_tuple=True)
    times = counts[row, slot, token]
    scored = open_slots & counts.bool().any(2).any(1, keepdim=True)
    return {
        "input_ids": reference["xlm.input_ids"],
        "attention_mask": mask,
        "open_slots": open_slots,
        "target_start": torch.ones_like(reference["in.x0_len"]),
        "scored_row": scored.nonzero()[:, 0],
        "scored_column": scored.nonzero()[:, 1],
        "num_scored": scored.sum(1).tolist(),
        "target_row": row.repeat_interleave(times),
        "target_slot": slot.repeat_interleave(times),
        "target_token": token.repeat_interleave(times),
        "num_dropped": counts.sum((1, 2)),
        "num_missing": reference["in.x0_len"],
        "num_draws": torch.tensor(1),
    }


@pytest.mark.parametrize(
    ("dtype", "suffix", "rtol"), [(torch.float64, "f64", 1e-6), (torch.float32, "f32", 1e-4)]
)
def test_loss_equals_the_reference(
    reference: dict[str, Tensor], dtype: torch.dtype, suffix: str, rtol: float
) -> None:
    batch = _reference_batch(reference)
    model = _FixedLogits(reference["in.logits"].to(dtype), reference["in.stop_logits"].to(dtype))
    weighted = ILMLoss(stop_weight=0.5, stop_class_weight=0.3)
    for name, loss in (("default", ILMLoss()), ("weighted", weighted)):
        output = loss(model, batch)
        expected = {
            "token": reference[f"xlm.{name}.per_example_ce.{suffix}"].sum(),
            "stop": reference[f"xlm.{name}.per_example_stop_loss.{suffix}"].sum(),
        }
        torch.testing.assert_close(output.terms, expected, rtol=rtol, atol=0)
        mean = output.loss_sum / output.loss_count
        torch.testing.assert_close(mean, reference[f"xlm.{name}.loss.{suffix}"], rtol=rtol, atol=0)


def test_length_head_equals_the_reference(reference: dict[str, Tensor]) -> None:
    model = _FixedLogits(reference["in.logits"].double(), reference["in.length_logits"].double())
    output = ILMLoss(head="length")(model, _reference_batch(reference))
    expected = reference["xlm.ce_length.per_example_length_loss.f64"].sum()
    torch.testing.assert_close(output.terms["stop"], expected, rtol=1e-6, atol=0)


def test_suppressed_ids_are_outside_the_softmax(reference: dict[str, Tensor]) -> None:
    """As in the joint distribution of the published sampler: MASK, EOS, PAD, CLS and BOS."""
    model = _FixedLogits(reference["in.logits"].double(), reference["in.stop_logits"].double())
    output = ILMLoss(suppressed_ids=(0, 1, 2, 3, 4))(model, _reference_batch(reference))
    counts = reference["xlm.target_counts"].double()
    log_joint = reference["xlm.sampler_joint_log_probs.f64"].masked_fill(counts == 0, 0.0)
    expected = (-(counts * log_joint).sum((1, 2)) / counts.sum((1, 2)).clamp(min=1)).sum()
    torch.testing.assert_close(output.terms["token"], expected, rtol=1e-6, atol=0)


def test_half_precision_logits_are_summed_in_float32(reference: dict[str, Tensor]) -> None:
    token_logits, stop_logits = reference["in.logits"].bfloat16(), reference["in.stop_logits"].bfloat16()
    output = ILMLoss()(_FixedLogits(token_logits, stop_logits), _reference_batch(reference))
    wide = _FixedLogits(token_logits.float(), stop_logits.float())
    expected = ILMLoss()(wide, _reference_batch(reference))
    assert output.terms == expected.terms
    assert output.loss_sum.dtype == torch.float32


SUPPRESSED = (0, 1, 2, 3, 4, 5, 6)


def _network(head_classes: int | None = None) -> ILM:
    head = "stop" if head_classes is None else "length"
    model = ILM(
        vocab_size=12, d_model=16, num_layers=1, num_heads=2, head=head, num_length_classes=head_classes
    ).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def _mixed_batch() -> ILMBatch:
    generator = torch.Generator().manual_seed(1)
    examples: list[ILMExample] = []
    for seed in range(12):
        length = seed % 6
        examples.append({"seed": seed, "target_ids": torch.randint(7, 12, (length,), generator=generator)})
        if seed % 3 == 1:
            examples[-1]["prompt_ids"] = torch.randint(7, 12, (2,), generator=generator)
        if seed % 3 == 2:
            examples[-1]["fixed"] = torch.rand(length, generator=generator) < 0.4
    return ILMCollator(pad_id=0, cls_id=1, bos_id=4)(examples)


def _dense_loss(model: ILM, batch: ILMBatch, row_weight: RowWeight) -> Tensor:
    """Row by row, with the logits of every cell and a table of counts."""
    output = model(batch["input_ids"], batch["attention_mask"])
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch["input_ids"])):
        counts = torch.zeros(output.token_logits.shape[1:], dtype=torch.float64)
        for other, slot, token in zip(
            batch["target_row"], batch["target_slot"], batch["target_token"], strict=True
        ):
            counts[slot, token] += float(other == row)
        allowed = batch["open_slots"][row].unsqueeze(1) & ~torch.isin(
            torch.arange(12), torch.tensor(SUPPRESSED)
        )
        chosen, number = counts[allowed], counts.sum()
        token = -(chosen @ output.token_logits[row][allowed].log_softmax(0)) / number if number > 0 else 0.0
        stop = -output.stop_logits[row].log_softmax(0)[int(number > 0)]
        weight = 1 if row_weight == "one" else int(batch["num_missing"][row]) + 1
        total = total + weight * (token + stop)
    return total


@pytest.mark.parametrize("row_weight", ["one", "length_plus_one"])
def test_loss_and_gradient_equal_those_of_a_dense_loss(row_weight: RowWeight) -> None:
    model, batch = _network(), _mixed_batch()
    parameters = list(model.parameters())
    sparse = ILMLoss(row_weight=row_weight, suppressed_ids=SUPPRESSED)(model, batch).loss_sum
    dense = _dense_loss(model, batch, row_weight)
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(dense, parameters)
    torch.testing.assert_close(torch.autograd.grad(sparse, parameters), expected, rtol=1e-10, atol=1e-12)


class _LargestTensor(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that an operation makes."""

    entries = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.entries = max(self.entries, result.numel())
        return result


class _AnyVocabulary(nn.Module):
    """Logits of a large vocabulary at the requested cells."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, vocab_size))

    def forward(self, input_ids: Tensor, mask: Tensor, position_ids: None, *, positions: Tensor) -> ILMOutput:
        logits = self.logits.expand(len(positions), -1)
        return ILMOutput(token_logits=logits, stop_logits=torch.zeros(len(input_ids), 2))


def test_memory_grows_with_open_slots_only() -> None:
    """Of 16 rows of 200 tokens with 2 missing, no tensor spans rows * length * vocab, forward or backward."""
    fixed = torch.ones(200, dtype=torch.bool)
    fixed[:2] = False
    examples: list[ILMExample] = [
        {"seed": seed, "target_ids": torch.full((200,), 7), "fixed": fixed} for seed in range(16)
    ]
    batch = ILMCollator(pad_id=0, cls_id=1, bos_id=4)(examples)
    cells = int((batch["open_slots"] & (batch["num_dropped"] > 0).unsqueeze(1)).sum())
    assert 0 < cells <= 32
    model = _AnyVocabulary(5_000)
    with _LargestTensor() as largest:
        output = ILMLoss(suppressed_ids=SUPPRESSED)(model, batch)
        torch.autograd.grad(output.loss_sum, model.logits)
    assert largest.entries == cells * 5_000


def test_logits_are_asked_for_where_something_was_dropped() -> None:
    batch = _mixed_batch()
    asked: list[Tensor] = []

    class _Recorder(nn.Module):
        def forward(
            self, input_ids: Tensor, mask: Tensor, position_ids: None, *, positions: Tensor
        ) -> ILMOutput:
            asked.append(positions)
            return ILMOutput(torch.zeros(len(positions), 12), torch.zeros(len(input_ids), 2))

    ILMLoss(suppressed_ids=SUPPRESSED)(_Recorder(), batch)
    wanted = batch["open_slots"] & (batch["num_dropped"] > 0).unsqueeze(1)
    assert torch.equal(asked[0], wanted.flatten().nonzero().squeeze(1))


def test_metrics_are_means_over_rows() -> None:
    batch = _mixed_batch()
    loss, model = ILMLoss(suppressed_ids=SUPPRESSED), _network()
    metrics = ILMLossMetrics()
    assert set(metrics.compute().values()) == {0.0}
    outputs = [loss(model, batch), loss(model, batch)]
    for output in outputs:
        metrics.update(output)
    stop_logits = model(batch["input_ids"], batch["attention_mask"]).stop_logits
    stop = [torch.sigmoid(logits[0] - logits[1]).item() for logits in stop_logits]
    missing = batch["num_dropped"].tolist()
    at_complete = [chance for chance, number in zip(stop, missing, strict=True) if number == 0]
    at_incomplete = [chance for chance, number in zip(stop, missing, strict=True) if number > 0]
    assert len(at_complete) > 0
    assert metrics.compute() == pytest.approx(
        {
            "stop_at_complete": sum(at_complete) / len(at_complete),
            "stop_at_incomplete": sum(at_incomplete) / len(at_incomplete),
            "mean_dropped": len(batch["target_row"]) / 12,
        }
    )
    assert not any(total.requires_grad for total in metrics.sums.values())
    metrics.reset()
    assert set(metrics.compute().values()) == {0.0}


def test_targets_that_the_sampler_cannot_write_are_refused() -> None:
    batch = _mixed_batch()
    token = int(batch["target_token"][0])
    with pytest.raises(ValueError, match=rf"the targets hold token id {token}, .* suppressed_ids"):
        ILMLoss(suppressed_ids=(0, token))(_network(), batch)


def test_more_missing_tokens_than_length_classes_are_refused() -> None:
    batch = _mixed_batch()
    most = int(batch["num_dropped"].max())
    assert ILMLoss(head="length")(_network(most + 1), batch).loss_sum.isfinite()
    with pytest.raises(
        ValueError, match=rf"misses {most} tokens, the length head has classes 0\.\.{most - 1}"
    ):
        ILMLoss(head="length")(_network(most), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_weight": -1.0}, "stop_weight must be at least 0, got -1.0"),
        ({"stop_weight": math.inf}, "stop_weight must be at least 0"),
        ({"stop_class_weight": 1.5}, "stop_class_weight must be None or in"),
        ({"stop_class_weight": 0.5, "head": "length"}, "None with head='length'"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ILMLoss(**options)


@pytest.mark.parametrize(("option", "value"), [("row_weight", "length"), ("head", "both")])
def test_choices_that_do_not_exist_are_refused(option: str, value: Any) -> None:
    # TypeError where the annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=rf"{option}(?s:.*)'{value}'"):
        ILMLoss(**{option: value})
