"""Trunks that skip padding, or cells that are not wanted, give what they give when they do not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from xlm.modules import DiT, RotaryTransformer
from xlm.modules.padding import PackedTokens

D_MODEL = 16
REAL = torch.tensor(
    [[True] * 6, [False, True, True, True, False, False], [True, False, False, True, False, True]]
)
TRUNKS: dict[str, Callable[[], nn.Module]] = {
    "bidirectional": lambda: RotaryTransformer(vocab_size=11, d_model=D_MODEL, num_layers=2, num_heads=2),
    "causal": lambda: RotaryTransformer(
        vocab_size=11, d_model=D_MODEL, num_layers=2, num_heads=2, causal=True
    ),
    "DiT": lambda: DiT(vocab_size=11, d_model=D_MODEL, num_layers=2, num_heads=2, d_condition=4),
}


def trunk(name: str) -> nn.Module:
    model = TRUNKS[name]()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.double()


def inputs(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, REAL.shape, generator=generator)
    condition = torch.randn(len(REAL), 4, generator=generator, dtype=torch.float64)
    return ids, {"condition": condition} if name == "DiT" else {}


@pytest.mark.parametrize("least_length", [1, 256])
@pytest.mark.parametrize("name", TRUNKS)
def test_states_and_gradients_equal_those_with_padding(
    name: str, least_length: int, monkeypatch: pytest.MonkeyPatch
):
    """A mask of three axes says the same, and keeps the padding in its rows."""
    monkeypatch.setattr("xlm.modules.padding._LEAST_LENGTH", least_length)
    model, (ids, given) = trunk(name), inputs(name)
    positions = REAL.cumsum(1) - 1
    square = REAL.unsqueeze(1).expand(-1, REAL.shape[1], -1)
    results = []
    for mask in (REAL, square):
        hidden = model(ids, mask, positions, **given)
        gradients = torch.autograd.grad(hidden[REAL].square().sum(), list(model.parameters()))
        results.append([hidden[REAL], *gradients])
    for skipped, kept in zip(*results, strict=True):
        torch.testing.assert_close(skipped, kept, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", TRUNKS)
def test_layers_see_the_real_tokens_only(name: str):
    model, (ids, given) = trunk(name), inputs(name)
    shapes: list[tuple[int, ...]] = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.in_features >= D_MODEL:
            layer.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape[:-1])))
    hidden = model(ids, REAL, **given)
    assert set(shapes) == {(int(REAL.sum()),)}
    assert bool((hidden[~REAL] == 0).all())


@pytest.mark.parametrize("mask", [REAL, REAL.unsqueeze(1).expand(-1, 6, -1), None], ids=str)
@pytest.mark.parametrize("name", TRUNKS)
def test_states_and_gradients_of_wanted_cells_equal_those_among_all(name: str, mask: Tensor | None):
    """In any order, one of them twice, padding too."""
    model, (ids, given) = trunk(name), inputs(name)
    cells = torch.tensor([17, 3, 8, 3, 6, 14])
    real = (torch.ones_like(REAL) if mask is None else REAL).flatten()[cells].nonzero().squeeze(1)
    among_all = model(ids, mask, **given).flatten(0, 1)[cells]
    alone = model(ids, mask, **given, positions=cells)
    assert alone.shape == (6, D_MODEL)
    results = [
        [hidden[real], *torch.autograd.grad(hidden[real].sin().sum(), list(model.parameters()))]
        for hidden in (among_all, alone)
    ]
    for wanted, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(wanted, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", TRUNKS)
def test_the_last_mlp_sees_the_wanted_cells_only(name: str):
    model, (ids, given) = trunk(name), inputs(name)
    numbers: list[int] = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.in_features == 4 * D_MODEL:
            layer.register_forward_pre_hook(lambda _, given: numbers.append(given[0][..., 0].numel()))
    model(ids, **given, positions=torch.tensor([5, 9]))
    assert numbers == [ids.numel(), 2]


def test_padding_that_is_little_or_unknown_stays():
    full = torch.ones(8, 32, dtype=torch.bool)
    little = full.clone()
    little[0, :8] = False
    assert [PackedTokens.real(mask) for mask in (None, full, little, full.unsqueeze(1))] == [None] * 4
    assert PackedTokens.real(full.to("meta")) is None
    little[1, 0] = False
    tokens = PackedTokens.real(little)
    assert tokens is not None
    rows = torch.randn(8, 32, 3)
    assert torch.equal(tokens.pack(rows), rows[little])
    assert torch.equal(tokens.pad(tokens.pack(rows)), rows * little.unsqueeze(-1))
