"""The rotary transformer against reference blocks, and the invariants of masks and positions."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlm.modules import (
    FeedForward,
    RotaryAttention,
    RotaryBlock,
    RotaryTransformer,
    rotary_angles,
    segment_mask,
)

LoadVectors = Callable[[str], dict[str, Tensor]]

REFERENCE_NAMES = {
    "attention_norm": "norm1",
    "attention.qkv": "attn_qkv",
    "attention.output": "o_proj",
    "feed_forward_norm": "norm2",
    "feed_forward.input": "mlp.0",
    "feed_forward.output": "mlp.2",
}
BLOCKS = [("rotary_gelu_rot8", 8), ("rotary_relu_rot8", 8), ("rotary_relu_rot4", 4)]


def reference_block(vectors: dict[str, Tensor], name: str) -> RotaryBlock:
    activation = "gelu" if "gelu" in name else "relu"
    block = RotaryBlock(d_model=16, num_heads=2, d_ff=32, activation=activation).double()
    weights = {
        f"{ours}.{kind}": vectors[f"w.{name}.{theirs}.{kind}"]
        for ours, theirs in REFERENCE_NAMES.items()
        for kind in ("weight", "bias")
        if f"w.{name}.{theirs}.{kind}" in vectors
    }
    block.load_state_dict(weights)
    return block


def network(
    *, causal: bool = False, rotary_dim: int | None = None, dropout: float = 0.0
) -> RotaryTransformer:
    """A small network in float64 with weights large enough for attention to matter, always the same."""
    model = RotaryTransformer(
        vocab_size=11,
        d_model=16,
        num_layers=2,
        num_heads=2,
        causal=causal,
        rotary_dim=rotary_dim,
        dropout=dropout,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.double()


def random_ids(batch: int, length: int, *, seed: int = 0) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


def pad(ids: Tensor, *, left: int, right: int) -> tuple[Tensor, Tensor]:
    real = torch.ones_like(ids, dtype=torch.bool)
    return F.pad(ids, (left, right), value=9), F.pad(real, (left, right), value=False)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


class TestReference:
    @pytest.mark.parametrize(("name", "rotary_dim"), BLOCKS)
    @pytest.mark.parametrize("mode", ["no_mask", "bidirectional", "causal"])
    def test_block_equals_the_reference(
        self, load_vectors: LoadVectors, name: str, rotary_dim: int, mode: str
    ):
        vectors = load_vectors("blocks")
        real = vectors["in.attention_mask"].bool()
        if mode == "no_mask":
            positions, mask = torch.arange(5).unsqueeze(0), None
        else:
            positions, mask = vectors["in.positions"], real.view(2, 1, 1, 5)
        if mode == "causal":
            mask = mask & torch.ones(5, 5, dtype=torch.bool).tril() if mask is not None else None
        cos, sin = rotary_angles(positions, rotary_dim, dtype=torch.float64)
        output = reference_block(vectors, name)(vectors["in.x"].double(), cos, sin, mask)
        torch.testing.assert_close(output, vectors[f"xlm.{name}.{mode}.f64"], rtol=1e-6, atol=1e-6)

    def test_last_norm_equals_the_reference(self, load_vectors: LoadVectors):
        """A network without blocks whose embedding holds the reference's input."""
        vectors = load_vectors("blocks")
        model = RotaryTransformer(vocab_size=10, d_model=16, num_layers=1, num_heads=2).double()
        model.blocks = nn.ModuleList()
        model.load_state_dict(
            {
                "embedding.weight": vectors["in.x"].view(10, 16),
                "final_norm.weight": vectors["w.final.norm_final.weight"],
                "final_norm.bias": vectors["w.final.norm_final.bias"],
            }
        )
        logits = model(torch.arange(10).view(2, 5)) @ vectors["w.final.linear.weight"].double().T
        torch.testing.assert_close(logits, vectors["xlm.final.f64"], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("mode", ["no_mask", "bidirectional", "causal"])
    def test_network_feeds_the_reference_block(self, load_vectors: LoadVectors, mode: str):
        """Embedding, default positions, masks and rotary_dim of the network give the block's vectors."""
        vectors = load_vectors("blocks")
        name = "rotary_relu_rot4"
        model = RotaryTransformer(
            vocab_size=10,
            d_model=16,
            num_layers=1,
            num_heads=2,
            d_ff=32,
            activation="relu",
            rotary_dim=4,
            causal=mode == "causal",
        ).double()
        with torch.no_grad():
            model.embedding.weight.copy_(vectors["in.x"].view(10, 16))
        model.blocks[0].load_state_dict(reference_block(vectors, name).state_dict())
        mask = None if mode == "no_mask" else vectors["in.attention_mask"].bool()
        expected = F.layer_norm(vectors[f"xlm.{name}.{mode}.f64"], (16,))
        hidden = model(torch.arange(10).view(2, 5), mask)
        real = torch.ones(2, 5, dtype=torch.bool) if mask is None else mask
        torch.testing.assert_close(hidden[real], expected[real], rtol=1e-6, atol=1e-5)


class TestPositionsAndMasks:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 4), (2, 5)])
    def test_padding_changes_nothing_at_real_tokens(self, causal: bool, left: int, right: int):
        model, ids = network(causal=causal), random_ids(3, 6)
        padded, real = pad(ids, left=left, right=right)
        assert_same(model(padded, real)[:, left : left + 6], model(ids))

    def test_rows_do_not_influence_each_other(self):
        model, ids = network(), random_ids(4, 6)
        real = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
        together = model(ids, real)
        for row, length in enumerate((6, 3, 1, 5)):
            assert_same(together[row, :length], model(ids[row : row + 1, :length])[0])

    @pytest.mark.parametrize("masked", [False, True])
    def test_causal_networks_do_not_see_later_tokens(self, masked: bool):
        model, ids = network(causal=True), random_ids(2, 7)
        mask = torch.ones_like(ids, dtype=torch.bool) if masked else None
        changed = ids.clone()
        changed[:, 4:] = (changed[:, 4:] + 1) % 11
        before, after = model(ids, mask), model(changed, mask)
        assert_same(after[:, :4], before[:, :4])
        assert bool(((after - before)[:, 4:].abs().amax(-1) > 1e-3).all())

    def test_causal_mask_and_kernel_agree(self):
        model, ids = network(causal=True), random_ids(2, 7)
        assert_same(model(ids, torch.ones_like(ids, dtype=torch.bool)), model(ids))

    def test_bidirectional_networks_see_later_tokens(self):
        model, ids = network(), random_ids(1, 5)
        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 11
        assert bool(((model(changed) - model(ids)).abs().amax(-1) > 1e-3).all())

    @pytest.mark.parametrize("causal", [False, True])
    def test_packed_segments_equal_separate_rows(self, causal: bool):
        model = network(causal=causal)
        segments = [random_ids(1, length, seed=length) for length in (3, 1, 5)]
        packed = torch.cat((*segments, random_ids(1, 2)), dim=1)
        segment_ids = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2, -1, -1]])
        hidden = model(packed, segment_mask(segment_ids))
        separate = torch.cat([model(ids) for ids in segments], dim=1)
        assert_same(hidden[:, :9], separate)
        assert bool(hidden.isfinite().all())
        restarted = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 0]])
        assert_same(model(packed, segment_mask(segment_ids), restarted)[:, :9], separate)

    def test_segment_mask_by_enumeration(self):
        segment_ids = [[0, 0, 3, -1], [2, 1, 2, -1]]
        expected = [[[a == b and a >= 0 for b in row] for a in row] for row in segment_ids]
        assert torch.equal(segment_mask(torch.tensor(segment_ids)), torch.tensor(expected))

    def test_a_square_mask_says_who_sees_whom(self):
        """Token 0 sees itself only, so it is as if alone; token 1 sees both."""
        model, ids = network(), random_ids(1, 2)
        hidden = model(ids, torch.tensor([[[True, False], [True, True]]]))
        assert_same(hidden[:, :1], model(ids[:, :1]))
        assert_same(hidden, network(causal=True)(ids))

    def test_only_differences_of_positions_matter(self):
        model, ids = network(), random_ids(2, 6)
        positions = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 2, 3, 7, 8, 40]])
        assert_same(model(ids, None, positions + 5000), model(ids, None, positions))
        assert not torch.allclose(model(ids, None, positions)[1], model(ids)[1], atol=1e-3)
        torch.testing.assert_close(model(ids, None, positions)[0], model(ids)[0])

    def test_order_is_seen_through_positions_only(self):
        model, ids = network(), random_ids(1, 6)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        assert_same(model(ids[:, order], None, order.unsqueeze(0)), model(ids)[:, order])

    @pytest.mark.parametrize("autocast", [False, True])
    def test_rows_without_a_key_stay_finite(self, autocast: bool):
        model, ids = network(causal=True).float(), random_ids(3, 5)
        real = torch.tensor([[False] * 5, [False, True, True, True, False], [True] * 5])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            hidden = model(ids, real)
        gradients = torch.autograd.grad(hidden[real].square().sum(), list(model.parameters()))
        assert bool(hidden.isfinite().all())
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)

    @pytest.mark.parametrize(
        ("causal", "padded", "mask_shape", "is_causal"),
        [
            (False, False, None, False),
            (True, False, None, True),
            (False, True, (2, 1, 1, 5), False),
            (True, True, (2, 1, 5, 5), False),
        ],
    )
    def test_the_kernel_gets_a_mask_only_when_one_is_needed(
        self,
        monkeypatch: pytest.MonkeyPatch,
        causal: bool,
        padded: bool,
        mask_shape: tuple[int, ...] | None,
        is_causal: bool,
    ):
        calls: list[tuple[tuple[int, ...] | None, bool]] = []

        def attention(
            query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, is_causal: bool
        ) -> Tensor:
            calls.append((None if attn_mask is None else tuple(attn_mask.shape), is_causal))
            return value

        monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
        ids = random_ids(2, 5)
        network(causal=causal)(ids, torch.ones_like(ids, dtype=torch.bool) if padded else None)
        assert calls == [(mask_shape, is_causal)] * 2


class TestNetwork:
    def test_gradients_equal_finite_differences(self):
        """Directional derivative in the space of all weights, float64."""
        model, ids = network(rotary_dim=4), random_ids(2, 5)
        real = torch.tensor([[True] * 5, [False, False, True, True, True]])
        probe = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

        def objective() -> Tensor:
            return (model(ids, real) * probe)[real].sum()

        parameters = list(model.parameters())
        gradients = torch.autograd.grad(objective(), parameters)
        direction = [torch.randn_like(parameter) for parameter in parameters]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        step = 1e-6
        values: list[float] = []
        with torch.no_grad():
            for sign in (1, -2):
                for parameter, change in zip(parameters, direction, strict=True):
                    parameter.add_(sign * step * change)
                values.append(float(objective()))
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-6)

    def test_attention_with_a_cache_equals_recomputation(self):
        """project and attend suffice for decoding token by token."""
        attention = RotaryAttention(d_model=16, num_heads=2).double()
        hidden = torch.randn(2, 6, 16, dtype=torch.float64)
        cos, sin = rotary_angles(torch.arange(6).unsqueeze(0), 8, dtype=torch.float64)
        expected = attention(hidden, cos, sin, is_causal=True)
        keys, values = torch.empty(2, 2, 0, 8).double(), torch.empty(2, 2, 0, 8).double()
        for i in range(6):
            query, key, value = attention.project(hidden[:, i : i + 1], cos[:, i : i + 1], sin[:, i : i + 1])
            keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
            assert_same(attention.attend(query, keys, values), expected[:, i : i + 1])

    def test_bfloat16_autocast_is_close_to_float32(self):
        model, ids = network().float(), random_ids(4, 8)
        exact = model(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(ids)
        assert rough.dtype == torch.float32
        relative_error = ((rough - exact).square().sum() / exact.square().sum()).sqrt()
        assert 0 < float(relative_error.detach()) < 0.05

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_hidden_states_have_the_dtype_of_the_weights(self, dtype: torch.dtype):
        hidden = network().to(dtype)(random_ids(2, 5))
        assert hidden.dtype == dtype
        assert hidden.shape == (2, 5, 16)

    def test_there_is_no_longest_length(self):
        model, ids = network(), random_ids(1, 3)
        far = torch.tensor([[10**6, 10**6 + 1, 10**6 + 2]])
        torch.testing.assert_close(model(ids, None, far), model(ids), rtol=0, atol=1e-7)

    def test_dropout_drops_the_updates_in_training_only(self):
        model, ids = network(dropout=1.0), random_ids(2, 5)
        everything_dropped = model.final_norm(model.embedding(ids))
        assert torch.equal(model.train()(ids), everything_dropped)
        assert torch.equal(model.eval()(ids), network()(ids))

    def test_initial_weights_have_the_documented_spread(self):
        model = RotaryTransformer(vocab_size=500, d_model=128, num_layers=8, num_heads=4)
        std = 1 / math.sqrt(128)
        residual = {
            f"blocks.{i}.{part}.output.weight" for i in range(8) for part in ("attention", "feed_forward")
        }
        for name, parameter in model.named_parameters():
            values = parameter.detach()
            if values.dim() == 2:
                expected = std / math.sqrt(16) if name in residual else std
                assert float(values.std()) == pytest.approx(expected, rel=0.03), name
                assert abs(float(values.mean())) < 5 * expected / values.numel() ** 0.5, name
            else:
                constant = 1.0 if name.endswith("norm.weight") else 0.0
                assert bool((values == constant).all()), name

    def test_inner_width_is_four_times_the_outer_one_by_default(self):
        model = RotaryTransformer(vocab_size=5, d_model=8, num_layers=1, num_heads=2)
        assert model.get_parameter("blocks.0.feed_forward.input.weight").shape == (32, 8)

    def test_norm_eps_reaches_every_norm(self):
        model = RotaryTransformer(vocab_size=5, d_model=8, num_layers=1, num_heads=2, norm_eps=0.5)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
        assert [norm.eps for norm in norms] == [0.5] * 3

    def test_there_are_no_buffers_and_the_meta_device_suffices(self):
        with torch.device("meta"):
            model = RotaryTransformer(vocab_size=50_000, d_model=1024, num_layers=2, num_heads=16)
            hidden = model(torch.zeros(2, 7, dtype=torch.int64))
        assert hidden.shape == (2, 7, 1024)
        assert not list(model.buffers())

    def test_gelu_by_the_error_function(self):
        layer = FeedForward(d_model=3, d_ff=5, activation="gelu_erf").double()
        hidden = torch.linspace(-4, 4, 12, dtype=torch.float64).view(4, 3)
        inner = layer.input(hidden)
        normal = [[(1 + math.erf(x / math.sqrt(2))) / 2 for x in row] for row in inner.tolist()]
        expected = layer.output(inner * torch.tensor(normal, dtype=torch.float64))
        torch.testing.assert_close(layer(hidden), expected)
        assert RotaryTransformer(vocab_size=5, d_model=8, num_layers=1, num_heads=2).activation == "gelu"

    def test_settings_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match="d_model \\(10\\) must be a multiple of num_heads \\(4\\)"):
            RotaryTransformer(vocab_size=5, d_model=10, num_layers=1, num_heads=4)
        for rotary_dim in (0, 3, 10):
            with pytest.raises(ValueError, match=rf"even and in 2\.\.8 .* got {rotary_dim}"):
                RotaryTransformer(vocab_size=5, d_model=16, num_layers=1, num_heads=2, rotary_dim=rotary_dim)
        with pytest.raises(ValueError, match=r"even and in 2\.\.3"):
            RotaryTransformer(vocab_size=5, d_model=9, num_layers=1, num_heads=3)
        # TypeError where the annotations are checked at run time.
        with pytest.raises((ValueError, TypeError), match="tanh"):
            FeedForward(d_model=8, d_ff=8, activation="tanh")  # pyright: ignore[reportArgumentType]  # refused
