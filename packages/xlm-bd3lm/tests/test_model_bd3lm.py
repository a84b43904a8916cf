"""The networks: the start of their training, where logits are computed, trunks, saving."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm.modules import DiT, RotaryTransformer, TimestepEmbedding
from xlm_bd3lm import BD3LMDiT, BD3LMRotary

VOCAB = 11
Network = BD3LMRotary | BD3LMDiT


def rotary() -> BD3LMRotary:
    return BD3LMRotary(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2, d_ff=24).double().eval()


def dit() -> BD3LMDiT:
    """With random weights where the network starts at zero."""
    model = BD3LMDiT(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2, d_condition=8, d_ff=24)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.double().eval()


EACH_NETWORK = pytest.mark.parametrize("make", [rotary, dit], ids=["rotary", "dit"])


def test_untrained_dit_gives_every_token_the_same_probability() -> None:
    logits: Tensor = BD3LMDiT(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2)(
        torch.randint(VOCAB, (2, 5))
    )
    assert not logits.any()


def test_untrained_rotary_network_has_small_logits() -> None:
    model = BD3LMRotary(vocab_size=50, d_model=64, num_layers=4, num_heads=4)
    logits: Tensor = model(torch.randint(50, (4, 10)))
    assert 0.05 < float(logits.detach().std()) < 0.5


@EACH_NETWORK
def test_positions_select_cells_of_all_logits(make: Callable[[], Network]) -> None:
    model, input_ids = make(), torch.randint(VOCAB, (3, 5))
    every = model(input_ids)
    assert every.shape == (3, 5, VOCAB)
    positions = torch.tensor([14, 0, 7, 7])
    torch.testing.assert_close(model(input_ids, positions=positions), every.view(15, VOCAB)[positions])
    assert model(input_ids, positions=positions[:0]).shape == (0, VOCAB)


@EACH_NETWORK
def test_padding_changes_no_logits(make: Callable[[], Network]) -> None:
    model, input_ids = make(), torch.randint(VOCAB, (2, 4))
    padded = torch.cat((input_ids, torch.zeros(2, 3, dtype=torch.int64)), 1)
    logits = model(padded, torch.arange(7).expand(2, -1) < 4)[:, :4]
    torch.testing.assert_close(logits, model(input_ids), rtol=1e-12, atol=1e-12)


def test_saved_networks_come_back(tmp_path: Path) -> None:
    for name, model in {"rotary": rotary().float(), "dit": dit().float()}.items():
        model.save_pretrained(tmp_path / name)
        loaded = type(model).from_pretrained(tmp_path / name)
        ids = torch.randint(VOCAB, (2, 6))
        assert torch.equal(loaded.eval()(ids), model(ids))


def test_networks_have_the_same_signature() -> None:
    own = inspect.signature(BD3LMRotary.forward).parameters
    assert list(map(str, own.values())) == list(
        map(str, inspect.signature(BD3LMDiT.forward).parameters.values())
    )


def test_either_network_takes_a_trunk() -> None:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 16, "num_layers": 1, "num_heads": 2}
    ids = torch.tensor([[1, 2, 3]])
    for trunk in (RotaryTransformer(**sizes), DiT(**sizes)):
        assert BD3LMRotary(vocab_size=VOCAB, trunk=trunk)(ids).shape == (1, 3, VOCAB)
    model = BD3LMDiT(vocab_size=VOCAB, trunk=DiT(**sizes, d_condition=8))
    assert model.noise_embedding.d_condition == 8
    assert model(ids).shape == (1, 3, VOCAB)
    plain: Any = RotaryTransformer(**sizes)
    with pytest.raises(ValueError, match=r"^model\.trunk \(.*RotaryTransformer\) takes no condition"):
        BD3LMDiT(vocab_size=VOCAB, trunk=plain)
    with pytest.raises(ValueError, match="d_condition=8, and the condition has the width 4"):
        BD3LMDiT(vocab_size=VOCAB, trunk=DiT(**sizes, d_condition=8), noise_embedding=TimestepEmbedding(4))
