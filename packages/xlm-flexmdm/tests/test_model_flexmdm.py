import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from xlm.modules import DiT, RotaryTransformer, TimestepEmbedding
from xlm_flexmdm import FlexMDM, FlexMDMOutput
from xlm_flexmdm.model_flexmdm import Head

BOS = 4


def _model(head: Head = "expectation") -> FlexMDM:
    model = FlexMDM(
        vocab_size=12, d_model=16, num_layers=2, num_heads=2, d_condition=8, max_length=5, head=head
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.double().eval()


def _run(
    model: FlexMDM,
    ids: Tensor,
    *,
    time: float = 0.3,
    missing: float = 0.7,
    attention_mask: Tensor | None = None,
) -> FlexMDMOutput:
    every = torch.arange(ids.numel())
    one = torch.ones(len(ids), dtype=torch.float64)
    with torch.no_grad():
        output: FlexMDMOutput = model(
            ids, time * one, missing * one, attention_mask, token_positions=every, slot_positions=every
        )
    return output


IDS = torch.tensor([[BOS, 7, 2, 9], [BOS, 2, 2, 8]])


@pytest.mark.parametrize("head", ["expectation", "distribution"])
def test_gaps_vanish_like_the_chance_of_being_absent(head: Head) -> None:
    model = _model(head)
    whole = _run(model, IDS, missing=1.0)
    small = _run(model, IDS, missing=1e-9)
    assert (whole.expected_gaps > 0).all()
    ratio = small.expected_gaps / 1e-9
    if head == "expectation":
        torch.testing.assert_close(ratio, whole.expected_gaps)
    else:
        assert whole.gap_logits is not None
        odds = (whole.gap_logits[:, 1] - whole.gap_logits[:, 0]).exp()
        torch.testing.assert_close(ratio, odds, rtol=1e-6, atol=0)
    assert _run(model, IDS, missing=0.0).expected_gaps.max() < 1e-300


def test_mean_of_the_gap_distribution() -> None:
    model = _model("distribution")
    output = _run(model, IDS)
    assert output.gap_logits is not None
    assert output.gap_logits.shape == (8, 6)
    distribution = output.gap_logits.softmax(-1)
    expected = sum(n * distribution[:, n] for n in range(6))
    torch.testing.assert_close(output.expected_gaps, expected)
    tilted = _run(model, IDS, missing=0.35).gap_logits
    assert tilted is not None
    weights = distribution * 0.5 ** torch.arange(6)
    torch.testing.assert_close(tilted.softmax(-1), weights / weights.sum(-1, keepdim=True))


def test_one_token_is_expected_in_each_slot_at_the_start() -> None:
    model = FlexMDM(vocab_size=12, d_model=32, num_layers=1, num_heads=2, max_length=40)
    assert _run(model, IDS, missing=1.0).expected_gaps.sub(1).abs().max() < 0.3


def test_the_largest_gap_is_the_scale_of_the_expectation() -> None:
    """g = a max_length softplus(z) with a = 0.7, max_length = 5 and z = log(e - 1), where softplus is 1."""
    model = _model()
    with torch.no_grad():
        model.gap_head.outer.weight.zero_()
        model.gap_head.outer.bias.fill_(math.log(math.e - 1))
    torch.testing.assert_close(_run(model, IDS).expected_gaps, torch.full((8,), 3.5, dtype=torch.float64))


def test_outputs_are_those_of_the_places_asked_for() -> None:
    model = _model()
    every = _run(model, IDS)
    cells, slots = torch.tensor([2, 5, 6]), torch.tensor([0, 7])
    one = torch.ones(2, dtype=torch.float64)
    with torch.no_grad():
        some: FlexMDMOutput = model(IDS, 0.3 * one, 0.7 * one, token_positions=cells, slot_positions=slots)
    torch.testing.assert_close(some.token_logits, every.token_logits[cells])
    torch.testing.assert_close(some.expected_gaps, every.expected_gaps[slots])


def test_padding_changes_nothing() -> None:
    model = _model()
    padded = torch.cat((IDS, torch.zeros(2, 3, dtype=torch.int64)), dim=1)
    attention_mask = torch.arange(7).expand(2, 7) < 4
    output = _run(model, padded, attention_mask=attention_mask)
    real = attention_mask.flatten()
    expected = _run(model, IDS)
    torch.testing.assert_close(output.token_logits[real], expected.token_logits)
    torch.testing.assert_close(output.expected_gaps[real], expected.expected_gaps)


def test_network_sees_the_time() -> None:
    model = _model()
    early, late = _run(model, IDS, time=0.1), _run(model, IDS, time=0.9)
    assert (early.token_logits - late.token_logits).abs().max() > 1e-3
    assert (early.expected_gaps - late.expected_gaps).abs().max() > 1e-4


@pytest.mark.parametrize("head", ["expectation", "distribution"])
def test_saved_and_loaded_network_is_the_same(head: Head, tmp_path: Path) -> None:
    model = _model(head).float()
    cast("Any", model).save_pretrained(tmp_path)
    loaded = cast("FlexMDM", cast("Any", FlexMDM).from_pretrained(tmp_path))
    assert loaded.max_length == 5
    assert loaded.head == head
    torch.testing.assert_close(_run(loaded, IDS), _run(model, IDS), rtol=0, atol=0)


def test_options_that_are_refused() -> None:
    # TypeError where the annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=r"head(?s:.*)'mean'"):
        _model("mean")  # pyright: ignore[reportArgumentType]  # what is refused
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        FlexMDM(vocab_size=12, d_model=16, num_layers=2, num_heads=2, max_length=0)


def test_a_trunk_without_a_condition_leaves_the_time_to_the_gap_head() -> None:
    sizes: dict[str, Any] = {"vocab_size": 12, "d_model": 16, "num_layers": 1, "num_heads": 2}
    for trunk, width in ((DiT(**sizes, d_condition=8), 8), (RotaryTransformer(**sizes), 128)):
        model = FlexMDM(vocab_size=12, max_length=5, trunk=trunk)
        assert model.time_embedding.d_condition == width
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3)
        early, late = _run(model.double(), IDS, time=0.1), _run(model, IDS, time=0.9)
        assert not torch.equal(early.expected_gaps, late.expected_gaps)
        assert torch.equal(early.token_logits, late.token_logits) == isinstance(trunk, RotaryTransformer)
    with pytest.raises(ValueError, match="d_condition=128, and the condition has the width 4"):
        FlexMDM(vocab_size=12, max_length=5, trunk=DiT(**sizes), time_embedding=TimestepEmbedding(4))
