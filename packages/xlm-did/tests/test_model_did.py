"""The network: its heads, its positions, and saving it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlm_did import DID
from xlm_did.model_did import LengthHead

TIME = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)


def _network() -> DID:
    return DID(vocab_size=12, max_missing=8, d_model=16, num_layers=2, num_heads=2).double().eval()


def test_logits_at_positions_are_those_of_all_cells() -> None:
    model = _network()
    ids = torch.randint(7, 12, (3, 5))
    everywhere = model(ids, time=TIME[: len(ids)])
    positions = torch.tensor([0, 7, 14, 7])
    some = model(ids, positions=positions, time=TIME)
    assert everywhere.token_logits.shape == (3, 5, 12)
    torch.testing.assert_close(some.token_logits, everywhere.token_logits.flatten(0, 1)[positions])
    torch.testing.assert_close(some.length_logits, everywhere.length_logits)


def test_columns_may_stand_in_any_order() -> None:
    """What counts are the positions: a buffer in the order of insertion gives the logits of the text."""
    model = _network()
    ids = torch.randint(7, 12, (2, 6))
    order = torch.tensor([0, 1, 4, 2, 5, 3])
    shuffled = model(ids[:, order], position_ids=order.expand(2, -1), time=TIME[:2])
    expected = model(ids, time=TIME[: len(ids)])
    torch.testing.assert_close(shuffled.token_logits, expected.token_logits[:, order])
    torch.testing.assert_close(shuffled.length_logits, expected.length_logits)


def test_length_head_is_its_formula() -> None:
    """W (x + W2 tanh(W1 LN(x) + b1) + b2), in numpy."""
    head = LengthHead(d_model=6, d_ff=10, num_classes=3).double()
    weights: dict[str, np.ndarray] = {}
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            weights[name] = generator.normal(size=tuple(parameter.shape))
            parameter.copy_(torch.tensor(weights[name]))
    x = generator.normal(size=(4, 6))
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    inner = np.tanh(normed @ weights["inner.weight"].T + weights["inner.bias"])
    expected = (x + inner @ weights["outer.weight"].T + weights["outer.bias"]) @ weights[
        "classifier.weight"
    ].T
    np.testing.assert_allclose(head(torch.tensor(x)).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"d_condition": 6, "rotary_dim": 4}])
def test_saved_network_gives_the_same_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "vocab_size": 12,
        "max_missing": 8,
        "d_model": 16,
        "num_layers": 1,
        "num_heads": 2,
        **options,
    }
    model = DID(**arguments).eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config[name] for name in arguments} == arguments
    card = (tmp_path / "README.md").read_text()
    assert "library_name: xlm-did" in card
    assert "license: mit" in card

    loaded = DID.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 12, (2, 7))
    expected, found = model(ids, time=TIME[: len(ids)]), loaded(ids, time=TIME[:2])
    assert torch.equal(found.token_logits, expected.token_logits)
    assert torch.equal(found.length_logits, expected.length_logits)


def test_the_time_reaches_the_tokens_and_not_the_numbers() -> None:
    """It starts without effect, and may be chosen from the numbers."""
    model = _network()
    ids = torch.randint(7, 12, (2, 5))
    early, late = (model(ids, time=torch.full((2,), u, dtype=torch.float64)) for u in (0.9, 0.1))
    assert torch.equal(early.token_logits, late.token_logits)
    with torch.no_grad():
        model.get_parameter("time_modulation.modulation.weight").normal_()
    early, late = (model(ids, time=torch.full((2,), u, dtype=torch.float64)) for u in (0.9, 0.1))
    assert not bool((early.token_logits == late.token_logits).any())
    assert torch.equal(early.length_logits, late.length_logits)

    chosen: list[torch.Tensor] = []

    def choose(length_logits: torch.Tensor) -> torch.Tensor:
        chosen.append(length_logits)
        return torch.full((2,), 0.1, dtype=torch.float64)

    assert torch.equal(model(ids, time=choose).token_logits, late.token_logits)
    assert torch.equal(chosen[0], late.length_logits)


def test_a_network_that_does_not_read_the_time_lets_a_sampler_choose_it() -> None:
    model = DID(vocab_size=12, max_missing=8, d_model=16, num_layers=1, num_heads=2, reads_time=False)
    assert not [name for name, _ in model.named_parameters() if "time" in name]
    ids, chosen = torch.randint(7, 12, (2, 5)), list[torch.Tensor]()

    def choose(length_logits: torch.Tensor) -> torch.Tensor:
        chosen.append(length_logits)
        return TIME[:2]

    assert torch.equal(model(ids, time=choose).token_logits, model(ids, time=TIME[1:]).token_logits)
    assert len(chosen) == 1


def test_time_zero_and_the_smallest_times_are_finite() -> None:
    model = _network()
    output = model(torch.randint(7, 12, (2, 5)), time=torch.tensor([0.0, 5e-324], dtype=torch.float64))
    assert bool(output.token_logits.isfinite().all())


def test_a_network_that_can_miss_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_missing must be at least 1, got 0"):
        DID(vocab_size=12, max_missing=0, d_model=16, num_layers=1, num_heads=2)
