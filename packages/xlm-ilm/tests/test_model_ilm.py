"""The network: its heads, its positions, and saving it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlm_ilm import ILM
from xlm_ilm.model_ilm import StopHead


def _network() -> ILM:
    return ILM(vocab_size=12, d_model=16, num_layers=2, num_heads=2).double().eval()


def test_logits_at_positions_are_those_of_all_cells() -> None:
    model = _network()
    ids = torch.randint(7, 12, (3, 5))
    everywhere = model(ids)
    positions = torch.tensor([0, 7, 14, 7])
    some = model(ids, positions=positions)
    assert everywhere.token_logits.shape == (3, 5, 12)
    torch.testing.assert_close(some.token_logits, everywhere.token_logits.flatten(0, 1)[positions])
    torch.testing.assert_close(some.stop_logits, everywhere.stop_logits)


def test_columns_may_stand_in_any_order() -> None:
    """What counts are the positions: a buffer in the order of insertion gives the logits of the text."""
    model = _network()
    ids = torch.randint(7, 12, (2, 6))
    order = torch.tensor([0, 1, 4, 2, 5, 3])
    shuffled = model(ids[:, order], position_ids=order.expand(2, -1))
    expected = model(ids)
    torch.testing.assert_close(shuffled.token_logits, expected.token_logits[:, order])
    torch.testing.assert_close(shuffled.stop_logits, expected.stop_logits)


def test_stop_head_is_its_formula() -> None:
    """W (x + W2 tanh(W1 LN(x) + b1) + b2), in numpy."""
    head = StopHead(d_model=6, d_ff=10, num_classes=3).double()
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


@pytest.mark.parametrize("options", [{}, {"head": "length", "num_length_classes": 9, "rotary_dim": 4}])
def test_saved_network_gives_the_same_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"vocab_size": 12, "d_model": 16, "num_layers": 1, "num_heads": 2, **options}
    model = ILM(**arguments).eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config[name] for name in arguments} == arguments
    card = (tmp_path / "README.md").read_text()
    assert "library_name: xlm-ilm" in card
    assert "license: mit" in card

    loaded = ILM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 12, (2, 7))
    expected, found = model(ids), loaded(ids)
    assert torch.equal(found.token_logits, expected.token_logits)
    assert torch.equal(found.stop_logits, expected.stop_logits)


@pytest.mark.parametrize("options", [{"head": "length"}, {"num_length_classes": 4}])
def test_length_head_and_its_classes_belong_together(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs num_length_classes"):
        ILM(vocab_size=12, d_model=16, num_layers=1, num_heads=2, **options)
