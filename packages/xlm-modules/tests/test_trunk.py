"""Rotary positions against other implementations; trunks: taken, refused in one line, saved and read."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm.modules import (
    BlockCache,
    CausalTrunk,
    ConditionedTrunk,
    DiT,
    KeyValueCache,
    MaskPiece,
    PiecewiseMask,
    PromptCache,
    RotaryTransformer,
    Trunk,
    apply_rotary,
    rotary_angles,
)
from xlm.modules.hub import HubModel, describe_part, make_part
from xlm.modules.trunk import (
    call_trunk,
    check_causal,
    check_condition,
    check_hidden,
    check_prompt,
    choose_trunk,
    prompt_mask,
    states_at,
    takes,
)

LoadVectors = Callable[[str], dict[str, Tensor]]


def rotate(x: Tensor, positions: Tensor, *, rotary_dim: int | None = None) -> Tensor:
    cos, sin = rotary_angles(positions, rotary_dim or x.shape[-1], dtype=x.dtype)
    return apply_rotary(x, cos, sin)


def random_heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_half_split_equals_the_references(load_vectors: LoadVectors):
    vectors = load_vectors("rope")
    q, k, positions = vectors["in.q"].double(), vectors["in.k"].double(), vectors["in.positions"]
    for name, x in (("xlm.half_split.q", q), ("xlm.half_split.k", k), ("litgpt.half_split.q", q)):
        torch.testing.assert_close(rotate(x, positions), vectors[f"{name}.f64"], rtol=1e-6, atol=1e-6)
    consecutive = torch.arange(5).unsqueeze(0)
    expected = vectors["flexmdm_official.half_split_arange.q.f64"]
    torch.testing.assert_close(rotate(q, consecutive), expected, rtol=1e-6, atol=1e-6)


def test_interleaved_layout_is_a_permutation_of_the_coordinates(load_vectors: LoadVectors):
    vectors = load_vectors("rope")
    permutation = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    for name in ("q", "k"):
        ours = rotate(vectors[f"in.{name}"][..., permutation], vectors["in.positions"])
        theirs = vectors[f"torchtitan.interleaved.{name}.f32"][..., permutation]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rotary_dim", [2, 4, 8])
def test_rotation_equals_multiplication_of_complex_numbers(rotary_dim: int):
    """(x1 + i x2) exp(i m theta) with theta_i = 10000^(-2i / rotary_dim); the other coordinates pass."""
    x, positions = random_heads(2, 3, 4, 8), torch.tensor([[0, 1, 2, 3], [5, 5, 1000, 123_456]])
    half = rotary_dim // 2
    theta = 10000.0 ** (-2 * np.arange(half) / rotary_dim)
    turns = np.exp(1j * positions.numpy()[:, None, :, None] * theta)
    array = x.numpy()
    rotated = (array[..., :half] + 1j * array[..., half:rotary_dim]) * turns
    expected = np.concatenate((rotated.real, rotated.imag, array[..., rotary_dim:]), axis=-1)
    ours = rotate(x, positions, rotary_dim=rotary_dim).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_scores_depend_on_differences_of_positions_only():
    query, key = random_heads(1, 2, 6, 8), random_heads(1, 2, 6, 8, seed=1)
    positions = torch.tensor([[0, 3, 4, 9, 20, 21]])

    def scores(offset: int) -> Tensor:
        return rotate(query, positions + offset) @ rotate(key, positions + offset).mT

    torch.testing.assert_close(scores(1000), scores(0), rtol=0, atol=1e-10)
    assert not torch.allclose(rotate(query, positions + 1000), rotate(query, positions))


def test_norms_are_preserved_and_position_zero_is_the_identity():
    x = random_heads(2, 3, 5, 8)
    positions = torch.randint(0, 10_000, (2, 5), generator=torch.Generator().manual_seed(0))
    squares, rotated_squares = (y.square().sum(-1) for y in (x, rotate(x, positions)))
    torch.testing.assert_close(rotated_squares, squares, rtol=1e-12, atol=0)
    assert torch.equal(rotate(x, torch.zeros_like(positions)), x)


@pytest.mark.parametrize(
    ("network", "angles"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_angles_have_at_least_float32_and_the_result_the_dtype_of_the_input(
    network: torch.dtype, angles: torch.dtype
):
    positions = torch.tensor([[256, 257]])
    cos, sin = rotary_angles(positions, 4, dtype=network)
    assert cos.dtype == sin.dtype == angles
    assert abs(float(sin[0, 1, 0]) - np.sin(257)) < 1e-5  # bfloat16 has no 257
    assert apply_rotary(torch.ones(1, 1, 2, 4, dtype=network), cos, sin).dtype == network


SIZES: dict[str, Any] = {"vocab_size": 9, "d_model": 8, "num_layers": 1, "num_heads": 2}


class Bag(nn.Module):
    """A trunk of a researcher: each token alone, ``extra`` columns wider than its ``d_model``."""

    def __init__(self, *, vocab_size: int, d_model: int, extra: int = 0) -> None:
        super().__init__()
        self.vocab_size, self.d_model, self.extra = vocab_size, d_model, extra
        self.embedding = nn.Embedding(vocab_size, d_model + extra)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        hidden: Tensor = self.embedding(input_ids)
        return hidden


class CausalBag(Bag):
    """Says that its tokens see nothing on their right."""

    causal = True


class Network(nn.Module, HubModel):
    """A family's network, reduced to what is about the trunk."""

    def __init__(
        self,
        *,
        vocab_size: int,
        trunk: Trunk | None = None,
        d_model: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.transformer = choose_trunk(
            trunk,
            partial(RotaryTransformer, vocab_size=vocab_size),
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
        )
        self.head = nn.Linear(self.transformer.d_model, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = check_hidden(self.transformer(ids), ids, self.transformer)
        logits: Tensor = self.head(hidden)
        return logits


def test_the_trunks_of_the_package_fit_their_protocols() -> None:
    plain: Trunk = RotaryTransformer(**SIZES)
    causal: CausalTrunk = RotaryTransformer(**SIZES, causal=True)
    conditioned: ConditionedTrunk = DiT(**SIZES, d_condition=4)
    ids = torch.tensor([[1, 2, 3]])
    for trunk in (plain, causal, conditioned):
        assert trunk(ids).shape == (1, 3, trunk.d_model)
    check_causal(causal)
    assert causal(ids, cache=KeyValueCache()).shape == (1, 3, 8)
    check_condition(conditioned, 4)
    assert takes(conditioned, "condition")
    assert not takes(plain, "condition")


def test_a_dit_without_a_condition_is_one_with_a_condition_of_zeros() -> None:
    trunk = DiT(**SIZES, d_condition=4)
    for parameter in trunk.parameters():
        nn.init.normal_(parameter)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert torch.equal(trunk(ids), trunk(ids, condition=torch.zeros(2, 4)))
    assert not torch.equal(trunk(ids), trunk(ids, condition=torch.ones(2, 4)))


def test_a_given_trunk_and_its_sizes_make_the_same_network() -> None:
    torch.manual_seed(0)
    flat = Network(**SIZES)
    torch.manual_seed(0)
    nested = Network(vocab_size=9, trunk=RotaryTransformer(**SIZES))
    assert list(flat.state_dict()) == list(nested.state_dict())
    for name, value in flat.state_dict().items():
        assert torch.equal(value, nested.state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "without a trunk the network needs d_model, num_layers, num_heads$"),
        ({"d_model": 8, "num_heads": 2}, "needs num_layers$"),
        ({"trunk": Bag(vocab_size=9, d_model=8), "d_model": 8}, r"model\.trunk is given, so d_model would"),
        ({"trunk": Bag(vocab_size=9, d_model=8), "dropout": 0.1}, r"\(model\.trunk\.dropout\)$"),
        ({"trunk": object()}, r"^model\.trunk \(builtins\.object\) is no torch\.nn\.Module"),
        ({"trunk": nn.Linear(2, 3)}, r"^model\.trunk \(torch.*Linear\) has no d_model"),
    ],
)
def test_what_is_no_trunk_or_too_much_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(vocab_size=9, **arguments)


def test_a_trunk_that_cannot_be_called_as_one_is_refused() -> None:
    class OnlyIds(Bag):
        def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
            return self.embedding(input_ids)

    with pytest.raises(ValueError, match=r"OnlyIds\) cannot be called as \(input_ids, "):
        Network(vocab_size=9, trunk=OnlyIds(vocab_size=9, d_model=8))


def test_hidden_states_of_another_shape_are_refused_with_both_shapes() -> None:
    network = Network(vocab_size=9, trunk=Bag(vocab_size=9, d_model=8, extra=1))
    expected = (
        r"^model\.trunk \(.*Bag\) gave hidden states of shape \(2, 3, 9\) for ids of shape \(2, 3\); with "
        r"its d_model=8 they have the shape \(2, 3, 8\)$"
    )
    with pytest.raises(ValueError, match=expected):
        network(torch.zeros(2, 3, dtype=torch.int64))


def test_cells_of_a_trunk_that_takes_no_positions_are_taken_from_all() -> None:
    ids, cells = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([4, 0])
    bag = Bag(vocab_size=9, d_model=8)
    assert torch.equal(states_at(bag, cells, ids), bag(ids).flatten(0, 1)[cells])
    assert torch.equal(states_at(bag, None, ids), bag(ids))


def test_what_a_family_needs_beyond_the_ids_is_asked_of_the_signature() -> None:
    bag = Bag(vocab_size=9, d_model=8)
    with pytest.raises(ValueError, match=r"^model\.trunk \(.*Bag\) takes no condition"):
        check_condition(bag, 4)
    with pytest.raises(ValueError, match=r"DiT\) has d_condition=128, and the condition has the width 4"):
        check_condition(DiT(**SIZES), 4)
    with pytest.raises(ValueError, match=r"RotaryTransformer\) is not causal"):
        check_causal(RotaryTransformer(**SIZES))
    with pytest.raises(ValueError, match=r"CausalBag\) takes no cache"):
        check_causal(CausalBag(vocab_size=9, d_model=8))


def test_a_prompt_that_does_not_see_the_target_needs_a_bidirectional_trunk_with_a_cache() -> None:
    bag = Bag(vocab_size=9, d_model=8)
    check_prompt(bag, sees_target=True)
    for trunk in (RotaryTransformer(**SIZES), DiT(**SIZES)):
        check_prompt(trunk, sees_target=False)
    for trunk in (bag, RotaryTransformer(**SIZES, causal=True)):
        with pytest.raises(
            ValueError, match=r"^model\.prompt_sees_target=false requires .* and model\.trunk \("
        ):
            check_prompt(trunk, sees_target=False)


def test_a_network_whose_prompt_does_not_see_the_target_is_told_which_tokens_are_the_prompt() -> None:
    ids = torch.tensor([[1, 2, 3]])
    trunk = RotaryTransformer(**SIZES)
    prompt, cache = torch.tensor([[True, False, False]]), PromptCache()
    call = partial(call_trunk, trunk, ids, None, None)
    assert torch.equal(call(sees_target=True, prompt=None, cache=None), trunk(ids))
    narrow = trunk(ids, prompt_mask(prompt, None))
    assert torch.equal(call(sees_target=False, prompt=prompt, cache=None), narrow)
    for sees_target, given in ((False, (None, None)), (False, (prompt, cache)), (True, (prompt, None))):
        with pytest.raises(ValueError, match=rf"prompt_sees_target={sees_target} is called with"):
            call(sees_target=sees_target, prompt=given[0], cache=given[1])


class TestSaving:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])

    def test_a_network_with_a_trunk_comes_back(self, tmp_path: Path) -> None:
        network = Network(vocab_size=9, trunk=RotaryTransformer(**SIZES, dropout=0.5)).eval()
        network.save_pretrained(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        assert content["trunk"]["_target_"] == "xlm.modules.RotaryTransformer"
        assert content["trunk"]["dropout"] == 0.5
        assert "d_model" not in content
        again = Network.from_pretrained(tmp_path)
        assert torch.equal(again(self.ids), network(self.ids))
        again.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text()) == content

    def test_a_flat_network_is_written_as_before(self, tmp_path: Path) -> None:
        Network(**SIZES).save_pretrained(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        assert {key: content[key] for key in content if key not in ("architectures", "model_type")} == {
            **SIZES,
            "dropout": 0.0,
        }

    def test_a_class_that_no_package_declares_needs_trust(self, tmp_path: Path) -> None:
        network = Network(vocab_size=9, trunk=Bag(vocab_size=9, d_model=8)).eval()
        network.save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=r"^trunk: no installed package declares '.*\.Bag'.*trust_remote_code"
        ):
            Network.from_pretrained(tmp_path)
        given = Network.from_pretrained(tmp_path, trunk=Bag(vocab_size=9, d_model=8))
        assert torch.equal(given(self.ids), network(self.ids))

    @pytest.mark.parametrize(
        "target", ["os.system", "xlm.modules.trunk.inspect.sys.exit", "xlm.modules.LogLinear"]
    )
    def test_nothing_else_is_called(self, tmp_path: Path, target: str) -> None:
        Network(vocab_size=9, trunk=RotaryTransformer(**SIZES)).save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"trunk": {"_target_": target}}))
        with pytest.raises(
            ValueError, match=r"^trunk: (no installed package declares|.* is no torch.nn.Module)"
        ):
            Network.from_pretrained(tmp_path)

    def test_a_class_or_arguments_that_make_no_sense_are_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="no installed package declares"):
            make_part("trunk", {"_target_": ["xlm.modules.DiT"]}, trusted=True)
        with pytest.raises(ValueError, match=r"^trunk: xlm\.modules\.DiT does not take the arguments"):
            make_part("trunk", {"_target_": "xlm.modules.DiT", "width": 3})

    def test_with_trust_any_importable_module_is_made(self) -> None:
        node = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
        with pytest.raises(ValueError, match="no installed package declares"):
            make_part("trunk", node)
        assert isinstance(make_part("trunk", node, trusted=True), nn.Linear)

    def test_an_argument_that_is_not_kept_is_named(self) -> None:
        trunk = Bag(vocab_size=9, d_model=8)
        del trunk.extra
        with pytest.raises(ValueError, match=r"^trunk \(.*Bag\) does not keep its argument extra"):
            describe_part("trunk", trunk)


ALL_SIZES = {"vocab_size": 5, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 16}


@pytest.mark.parametrize("network", [RotaryTransformer, DiT])
@pytest.mark.parametrize("name", ALL_SIZES)
@pytest.mark.parametrize("size", [0, -8])
def test_a_size_below_one_is_refused(
    network: type[RotaryTransformer] | type[DiT], name: str, size: int
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {size}"):
        network(**{**ALL_SIZES, name: size})  # pyright: ignore[reportArgumentType]  # the other arguments are no sizes


@pytest.mark.parametrize("kind", [RotaryTransformer, partial(RotaryTransformer, causal=True), DiT])
def test_mask_in_pieces_is_the_mask(kind: Callable[..., Any]):
    """Also where the trunk needs the table: a causal one, and one with a cache."""
    trunk = kind(vocab_size=7, d_model=8, num_layers=2, num_heads=2).double()
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(parameter)))
    mask = torch.eye(5, dtype=torch.bool).repeat(2, 1, 1)
    mask[0, :2, 3:] = mask[1, 2, 0] = mask[1, 4, 1:3] = True
    ranges = [(2, [(0, 2), (3, 5)]), (3, [(0, 5)])]
    pieces, start = [], 0
    for number, keys in ranges:
        rows = mask[:, start : start + number]
        pieces.append(MaskPiece(keys, torch.cat([rows[:, :, low:high] for low, high in keys], dim=2)))
        start += number
    piecewise = PiecewiseMask(pieces)
    assert torch.equal(piecewise.dense(), mask)
    ids = torch.arange(10).view(2, 5) % 7
    expected = trunk(ids, mask)
    assert not torch.allclose(expected, trunk(ids))
    torch.testing.assert_close(trunk(ids, piecewise), expected, rtol=0, atol=1e-13)
    if not getattr(trunk, "causal", False):
        torch.testing.assert_close(trunk(ids, piecewise, cache=BlockCache()), expected, rtol=0, atol=1e-13)
