"""The networks: the start of its training, the time, and where logits are computed."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from xlm.modules import DiT, RotaryTransformer, TimestepEmbedding
from xlm_udlm import UDLMDiT, UDLMRotary

VOCAB = 11
Network = TypeVar("Network", UDLMDiT, UDLMRotary)


def dit(*, time_conditioning: bool = True) -> UDLMDiT:
    return randomised(
        UDLMDiT(
            vocab_size=VOCAB,
            d_model=16,
            num_layers=2,
            num_heads=2,
            d_condition=8,
            d_ff=24,
            time_conditioning=time_conditioning,
        )
    )


def rotary(*, time_conditioning: bool = True) -> UDLMRotary:
    return randomised(
        UDLMRotary(
            vocab_size=VOCAB,
            d_model=16,
            num_layers=2,
            num_heads=2,
            d_ff=24,
            time_conditioning=time_conditioning,
        )
    )


def randomised(model: Network) -> Network:
    """With random weights where the network starts at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.double().eval()


EACH_NETWORK = pytest.mark.parametrize("make", [dit, rotary])


def test_the_untrained_network_gives_every_token_the_same_probability() -> None:
    model = UDLMDiT(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2)
    logits: Tensor = model(torch.randint(VOCAB, (2, 5)), None, torch.tensor([0.1, 2.0]))
    assert not logits.any()


@EACH_NETWORK
def test_a_network_is_conditioned_on_the_time_by_default(make: Callable[..., UDLMDiT | UDLMRotary]) -> None:
    """Noise is not visible, so a row alone does not determine the best prediction."""
    model = make()
    assert model.time_conditioning
    with pytest.raises(ValueError, match="conditioned on time and needs the noise"):
        model(torch.randint(VOCAB, (2, 5)))
    rows = torch.randint(VOCAB, (1, 5)).repeat(2, 1)
    logits: Tensor = model(rows, None, torch.tensor([0.1, 2.0], dtype=torch.float64))
    assert bool(((logits[0] - logits[1]).abs() > 1e-3).any())


def test_without_the_time_the_condition_is_that_of_zero_noise() -> None:
    with_time, without_time = dit(), dit(time_conditioning=False)
    without_time.load_state_dict(with_time.state_dict())
    rows = torch.randint(VOCAB, (3, 5))
    zero = with_time(rows, None, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(without_time(rows), zero, rtol=1e-12, atol=1e-12)
    some = without_time(rows, None, torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64))
    assert torch.equal(some, without_time(rows))


def test_a_rotary_network_without_the_time_reads_tokens_alone() -> None:
    model, rows = rotary(time_conditioning=False), torch.randint(VOCAB, (3, 5))
    some = model(rows, None, torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64))
    assert torch.equal(some, model(rows))
    hidden: Tensor = model.transformer(rows)
    torch.testing.assert_close(some, hidden @ model.token_head.weight.T, rtol=1e-12, atol=1e-12)


@EACH_NETWORK
def test_logits_are_computed_at_the_requested_cells(make: Callable[..., UDLMDiT | UDLMRotary]) -> None:
    model, rows = make(), torch.randint(VOCAB, (3, 4))
    noise = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    everywhere: Tensor = model(rows, None, noise)
    cells = torch.tensor([0, 5, 11])
    some: Tensor = model(rows, None, noise, positions=cells)
    torch.testing.assert_close(some, everywhere.flatten(0, 1)[cells], rtol=1e-12, atol=1e-12)


def test_a_trunk_of_your_own_takes_the_condition() -> None:
    trunk = DiT(vocab_size=VOCAB, d_model=16, num_layers=1, num_heads=2, d_condition=6)
    model = UDLMDiT(vocab_size=VOCAB, trunk=trunk)
    assert model.noise_embedding.d_condition == 6
    with pytest.raises(ValueError, match="has d_condition=6, and the condition has the width 7"):
        UDLMDiT(vocab_size=VOCAB, trunk=trunk, noise_embedding=TimestepEmbedding(7))
    plain = RotaryTransformer(vocab_size=VOCAB, d_model=16, num_layers=1, num_heads=2)
    rotary_network = UDLMRotary(vocab_size=VOCAB, trunk=plain)
    assert rotary_network.transformer is plain
    del plain.embedding
    with pytest.raises(ValueError, match="has no embedding"):
        UDLMRotary(vocab_size=VOCAB, trunk=plain)
    with pytest.raises(ValueError, match="takes no condition"):
        UDLMDiT(vocab_size=VOCAB, trunk=plain)  # pyright: ignore[reportArgumentType]  # what is refused
