"""The networks: the start of their training, the time, where logits are computed, saving."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xlm.modules import DiT, RotaryTransformer, TimestepEmbedding, segment_mask
from xlm_mdlm import MDLMDiT, MDLMRotary

VOCAB = 11


def rotary() -> MDLMRotary:
    return MDLMRotary(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2, d_ff=24).double().eval()


def dit(*, time_conditioning: bool = False) -> MDLMDiT:
    """With random weights where the network starts at zero."""
    model = MDLMDiT(
        vocab_size=VOCAB,
        d_model=16,
        num_layers=2,
        num_heads=2,
        d_condition=8,
        d_ff=24,
        time_conditioning=time_conditioning,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.double().eval()


EACH_NETWORK = pytest.mark.parametrize("make", [rotary, dit], ids=["rotary", "dit"])
Network = MDLMRotary | MDLMDiT


def test_untrained_dit_gives_every_token_the_same_probability() -> None:
    model = MDLMDiT(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2)
    assert model.token_head.bias is not None
    logits: Tensor = model(torch.randint(VOCAB, (2, 5)))
    assert not logits.any()


def test_untrained_rotary_network_has_small_logits() -> None:
    model = MDLMRotary(vocab_size=50, d_model=64, num_layers=4, num_heads=4)
    logits: Tensor = model(torch.randint(50, (4, 10)))
    assert 0.05 < float(logits.detach().std()) < 0.5


@EACH_NETWORK
def test_time_is_ignored_by_default(make: Callable[[], Network]) -> None:
    model, input_ids = make(), torch.randint(VOCAB, (2, 5))
    with_time = model(input_ids, None, torch.tensor([0.3, 5.0], dtype=torch.float64))
    assert torch.equal(with_time, model(input_ids))


def test_without_the_time_the_condition_is_that_of_zero_noise() -> None:
    with_time, without_time = dit(time_conditioning=True), dit()
    without_time.load_state_dict(with_time.state_dict())
    input_ids = torch.randint(VOCAB, (3, 5))
    zero = with_time(input_ids, None, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(without_time(input_ids), zero, rtol=1e-12, atol=1e-12)
    some = with_time(input_ids, None, torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64))
    assert torch.equal(some[0], zero[0])
    assert ((some - zero)[1:].abs().amax((1, 2)) > 1e-3).all()


def test_a_network_conditioned_on_the_time_requires_it() -> None:
    with pytest.raises(ValueError, match="conditioned on time, but its batch has none"):
        dit(time_conditioning=True)(torch.randint(VOCAB, (2, 5)))


def test_dit_is_the_published_network() -> None:
    """Forward pass in numpy, float64, with the noise as the time: embedding to logits."""
    model = dit(time_conditioning=True)
    input_ids, noise = torch.randint(VOCAB, (1, 6)), 1.7
    logits: Tensor = model(input_ids, None, torch.tensor([noise], dtype=torch.float64))
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = numpy_dit(weights, input_ids[0].numpy(), noise, num_layers=2, num_heads=2)
    assert logits[0].detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def numpy_dit(
    weights: dict[str, Array],
    ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    noise: float,
    *,
    num_layers: int,
    num_heads: int,
) -> Array:
    def linear(name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", np.zeros(1))

    def silu(x: Array) -> Array:
        return x / (1 + np.exp(-x))

    def gelu(x: Array) -> Array:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def norm(name: str, x: Array, shift: Array, scale: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]
        return normed * (1 + scale) + shift

    def rotate(x: Array) -> Array:
        half = x.shape[1] // 2
        angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(half) / half)
        first, second = x[:, :half], x[:, half:]
        turned = [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ]
        return np.concatenate(turned, axis=1)

    angles = noise * 10000.0 ** (-np.arange(128) / 128)
    features = np.concatenate([np.cos(angles), np.sin(angles)])
    embedding = linear("noise_embedding.output", silu(linear("noise_embedding.input", features)))
    condition = silu(embedding)
    x = weights["transformer.embedding.weight"][ids]
    for layer in range(num_layers):
        block = f"transformer.blocks.{layer}"
        shift, scale, gate, shift_2, scale_2, gate_2 = np.split(linear(f"{block}.modulation", condition), 6)
        qkv = linear(f"{block}.attention.qkv", norm(f"{block}.attention_norm", x, shift, scale))
        heads = [np.split(part, num_heads, axis=1) for part in np.split(qkv, 3, axis=1)]
        attended: list[Array] = []
        for query, key, value in zip(*heads, strict=True):
            scores = rotate(query) @ rotate(key).T / math.sqrt(query.shape[1])
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            attended.append(shares / shares.sum(-1, keepdims=True) @ value)
        x = x + gate * linear(f"{block}.attention.output", np.concatenate(attended, axis=1))
        inner = linear(f"{block}.feed_forward.input", norm(f"{block}.feed_forward_norm", x, shift_2, scale_2))
        x = x + gate_2 * linear(f"{block}.feed_forward.output", gelu(inner))
    shift, scale = np.split(linear("transformer.final_modulation", condition), 2)
    return linear("token_head", norm("transformer.final_norm", x, shift, scale))


@EACH_NETWORK
def test_positions_select_cells_of_all_logits(make: Callable[[], Network]) -> None:
    model, input_ids = make(), torch.randint(VOCAB, (3, 5))
    every = model(input_ids)
    assert every.shape == (3, 5, VOCAB)
    positions = torch.tensor([14, 0, 7, 7])
    torch.testing.assert_close(model(input_ids, positions=positions), every.view(15, VOCAB)[positions])
    assert model(input_ids, positions=positions[:0]).shape == (0, VOCAB)


@EACH_NETWORK
def test_every_cell_sees_both_sides(make: Callable[[], Network]) -> None:
    model, input_ids = make(), torch.randint(2, VOCAB, (1, 5))
    before = model(input_ids)
    for column in (0, 4):
        changed = input_ids.clone()
        changed[0, column] = 1
        assert ((model(changed) - before).abs().amax(-1) > 1e-9).all()


@EACH_NETWORK
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(make: Callable[[], Network], side: str) -> None:
    model, input_ids = make(), torch.randint(VOCAB, (2, 4))
    padding = torch.zeros(2, 3, dtype=torch.int64)
    mask = torch.cat((torch.zeros(2, 3), torch.ones(2, 4)), 1).bool()
    padded = torch.cat((padding, input_ids) if side == "left" else (input_ids, padding), 1)
    mask = mask if side == "left" else mask.flip(1)
    logits = model(padded, mask)[mask].view(2, 4, VOCAB)
    torch.testing.assert_close(logits, model(input_ids), rtol=1e-12, atol=1e-12)


@EACH_NETWORK
def test_texts_packed_into_one_row_do_not_see_each_other(make: Callable[[], Network]) -> None:
    model, input_ids = make(), torch.randint(VOCAB, (1, 7))
    packed = model(input_ids, segment_mask(torch.tensor([[0, 0, 0, 1, 1, 1, 1]])))
    for part in (slice(0, 3), slice(3, 7)):
        torch.testing.assert_close(packed[:, part], model(input_ids[:, part]), rtol=1e-12, atol=1e-12)


def test_saved_networks_come_back(tmp_path: Path) -> None:
    for name, model in {"rotary": rotary().float(), "dit": dit(time_conditioning=True).float()}.items():
        model.save_pretrained(tmp_path / name)
        assert {path.name for path in (tmp_path / name).iterdir()} >= {"model.safetensors", "config.json"}
        loaded = type(model).from_pretrained(tmp_path / name)
        arguments = torch.randint(VOCAB, (2, 6)), None, torch.tensor([0.2, 2.0])
        assert torch.equal(loaded.eval()(*arguments), model(*arguments))


def test_networks_have_the_same_signature_but_for_the_prompt() -> None:
    own = dict(inspect.signature(MDLMRotary.forward).parameters)
    assert [own.pop(name).default for name in ("prompt", "cache")] == [None, None]
    shared = inspect.signature(MDLMDiT.forward).parameters
    assert list(map(str, own.values())) == list(map(str, shared.values()))


def test_either_network_takes_a_trunk() -> None:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 16, "num_layers": 1, "num_heads": 2}
    ids = torch.tensor([[1, 2, 3]])
    for trunk in (RotaryTransformer(**sizes), DiT(**sizes)):
        assert MDLMRotary(vocab_size=VOCAB, trunk=trunk)(ids).shape == (1, 3, VOCAB)
    model = MDLMDiT(vocab_size=VOCAB, trunk=DiT(**sizes, d_condition=8), time_conditioning=True)
    assert model.noise_embedding.d_condition == 8
    assert model(ids, noise=torch.ones(1)).shape == (1, 3, VOCAB)
    plain: Any = RotaryTransformer(**sizes)
    with pytest.raises(ValueError, match=r"^model\.trunk \(.*RotaryTransformer\) takes no condition"):
        MDLMDiT(vocab_size=VOCAB, trunk=plain)
    with pytest.raises(ValueError, match="d_condition=8, and the condition has the width 4"):
        MDLMDiT(vocab_size=VOCAB, trunk=DiT(**sizes, d_condition=8), noise_embedding=TimestepEmbedding(4))
