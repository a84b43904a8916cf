"""The diffusion transformer against the authors' block, a numpy forward in float64, and its invariants."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from xlm.modules import DiT, DiTBlock, TimestepEmbedding, rotary_angles, segment_mask

LoadVectors = Callable[[str], dict[str, Tensor]]
Array = NDArray[np.float64]

AUTHORS_NAMES = {
    "attention_norm.weight": "norm1.weight",
    "attention.qkv.weight": "attn_qkv.weight",
    "attention.output.weight": "o_proj.weight",
    "feed_forward_norm.weight": "norm2.weight",
    "feed_forward.input.weight": "mlp.0.weight",
    "feed_forward.input.bias": "mlp.0.bias",
    "feed_forward.output.weight": "mlp.2.weight",
    "feed_forward.output.bias": "mlp.2.bias",
    "modulation.weight": "ada_ln_modulations.modulation.weight",
    "modulation.bias": "ada_ln_modulations.modulation.bias",
}


def authors_weights(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {ours: vectors[f"w.ddit.{theirs}"] for ours, theirs in AUTHORS_NAMES.items()}


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}


def norm(x: Array, weight: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotate(x: Array, positions: NDArray[np.int64]) -> Array:
    """Pairs (i, i + half) as complex numbers, turned by position * 10000^(-2i / dim)."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(
        1j * positions[:, None] * 10000.0 ** (-np.arange(half) / half)
    )
    return np.concatenate((turned.real, turned.imag), axis=-1)


def attention(
    x: Array, w: dict[str, Array], seen: NDArray[np.bool_], positions: NDArray[np.int64], num_heads: int
) -> Array:
    """Head by head for one row: x is (length, d_model), seen: query (axis 0) attends to key."""
    query, key, value = np.split(x @ w["attention.qkv.weight"].T, 3, axis=-1)
    heads: list[Array] = []
    for columns in np.split(np.arange(x.shape[-1]), num_heads):
        rotated_query, rotated_key = rotate(query[:, columns], positions), rotate(key[:, columns], positions)
        scores = np.where(seen, rotated_query @ rotated_key.T / np.sqrt(len(columns)), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, columns])
    return np.concatenate(heads, axis=-1) @ w["attention.output.weight"].T


def block_forward(
    x: Array,
    condition: Array,
    w: dict[str, Array],
    *,
    seen: NDArray[np.bool_] | None = None,
    positions: NDArray[np.int64] | None = None,
    num_heads: int = 2,
) -> Array:
    """One row through one block; ``condition`` is already activated."""
    length = len(x)
    seen = np.ones((length, length), dtype=bool) if seen is None else seen
    positions = np.arange(length) if positions is None else positions
    parts = condition @ w["modulation.weight"].T + w["modulation.bias"]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = np.split(parts, 6)
    modulated = norm(x, w["attention_norm.weight"]) * (1 + scale_1) + shift_1
    x = x + gate_1 * attention(modulated, w, seen, positions, num_heads)
    modulated = norm(x, w["feed_forward_norm.weight"]) * (1 + scale_2) + shift_2
    inner = tanh_gelu(modulated @ w["feed_forward.input.weight"].T + w["feed_forward.input.bias"])
    return x + gate_2 * (inner @ w["feed_forward.output.weight"].T + w["feed_forward.output.bias"])


def final_forward(x: Array, condition: Array, weight: Array, modulation: Array, bias: Array) -> Array:
    shift, scale = np.split(condition @ modulation.T + bias, 2)
    return norm(x, weight) * (1 + scale) + shift


def network_forward(
    model: DiT,
    ids: Tensor,
    condition: Tensor,
    *,
    seen: NDArray[np.bool_] | None = None,
    positions: NDArray[np.int64] | None = None,
) -> Array:
    """One row through the whole network."""
    w = arrays(model.state_dict())
    x, activated = w["embedding.weight"][ids.numpy()], silu(condition.numpy())
    for index in range(len(model.blocks)):
        prefix = f"blocks.{index}."
        block = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        x = block_forward(x, activated, block, seen=seen, positions=positions)
    return final_forward(
        x, activated, w["final_norm.weight"], w["final_modulation.weight"], w["final_modulation.bias"]
    )


def network(*, dropout: float = 0.0) -> DiT:
    """A small network in float64 with weights large enough for every part to matter, always the same."""
    model = DiT(vocab_size=11, d_model=16, num_layers=2, num_heads=2, d_condition=6, dropout=dropout)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.double()


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(0))


def random_conditions(batch: int) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor | Array) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected), rtol=0, atol=1e-11)


class TestBlock:
    def test_block_equals_the_authors_block(self, load_vectors: LoadVectors):
        vectors = load_vectors("blocks")
        block = DiTBlock(d_model=16, num_heads=2, d_ff=32, d_condition=6).double()
        block.load_state_dict(authors_weights(vectors))
        cos, sin = rotary_angles(torch.arange(5).unsqueeze(0), 8, dtype=torch.float64)
        x, condition = vectors["in.x"].double(), vectors["in.cond"].double()
        output = block(x, condition, cos, sin)
        authors = vectors["mdlm_official.ddit.no_mask.f32"].double()
        torch.testing.assert_close(output, authors, rtol=1e-4, atol=1e-5)
        weights = arrays(block.state_dict())
        for row in range(2):
            assert_same(output[row], block_forward(x[row].numpy(), condition[row].numpy(), weights))

    def test_block_is_the_identity_at_the_start(self):
        block = DiTBlock(d_model=16, num_heads=2, d_ff=32, d_condition=6, dropout=0.5)
        hidden = torch.randn(3, 5, 16)
        cos, sin = rotary_angles(torch.arange(5).unsqueeze(0), 8, dtype=torch.float32)
        assert torch.equal(block(hidden, torch.randn(3, 6), cos, sin), hidden)


class TestNetwork:
    def test_network_equals_numpy(self):
        model, ids, conditions = network(), random_ids(3, 6), random_conditions(3)
        hidden = model(ids, condition=conditions)
        for row in range(3):
            assert_same(hidden[row], network_forward(model, ids[row], conditions[row]))

    def test_masks_and_positions_reach_every_block(self):
        model, ids, conditions = network(), random_ids(2, 5), random_conditions(2)
        generator = torch.Generator().manual_seed(2)
        seen = torch.rand(2, 5, 5, generator=generator) < 0.6
        seen |= torch.eye(5, dtype=torch.bool)
        positions = torch.tensor([[4, 0, 9, 2, 2], [0, 1, 2, 3, 100]])
        hidden = model(ids, seen, positions, condition=conditions)
        for row in range(2):
            expected = network_forward(
                model, ids[row], conditions[row], seen=seen[row].numpy(), positions=positions[row].numpy()
            )
            assert_same(hidden[row], expected)

    def test_last_layer_equals_the_reference(self, load_vectors: LoadVectors):
        """Through numpy, whose last layer takes the activated condition as the reference does."""
        vectors = load_vectors("blocks")
        weights = {
            "final_norm.weight": vectors["w.ddit_final.norm_final.weight"],
            "final_modulation.weight": vectors["w.ddit_final.adaLN_modulation.modulation.weight"],
            "final_modulation.bias": vectors["w.ddit_final.adaLN_modulation.modulation.bias"],
        }
        ours, head = arrays(weights), vectors["w.ddit_final.linear.weight"].double().numpy()
        x, conditions = vectors["in.x"].double().numpy(), vectors["in.cond"].double().numpy()
        for row in range(2):
            expected = vectors["xlm.ddit_final.f64"][row].numpy()
            logits = final_forward(x[row], conditions[row], *ours.values()) @ head.T
            np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)
        model = DiT(vocab_size=10, d_model=16, num_layers=1, num_heads=2, d_condition=6).double()
        model.blocks = nn.ModuleList()
        model.load_state_dict({"embedding.weight": vectors["in.x"].view(10, 16), **weights})
        hidden = model(torch.arange(10).view(2, 5), condition=vectors["in.cond"].double())
        for row in range(2):
            assert_same(hidden[row], final_forward(x[row], silu(conditions[row]), *ours.values()))

    def test_network_is_the_normed_embedding_at_the_start(self):
        model = DiT(vocab_size=11, d_model=16, num_layers=3, num_heads=2, d_condition=6)
        ids = random_ids(2, 5)
        expected = F.layer_norm(model.embedding(ids), (16,))
        assert torch.equal(model(ids, condition=100 * torch.randn(2, 6)), expected)

    def test_initial_weights_have_the_documented_spread(self):
        model = DiT(vocab_size=500, d_model=128, num_layers=2, num_heads=4, d_condition=32)
        for name, parameter in model.named_parameters():
            values = parameter.detach()
            if values.dim() == 2 and "modulation" not in name:
                assert float(values.std()) == pytest.approx(128**-0.5, rel=0.03), name
            else:
                constant = 1.0 if name.endswith("norm.weight") else 0.0
                assert bool((values == constant).all()), name

    @pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 4), (2, 5)])
    def test_padding_changes_nothing_at_real_tokens(self, left: int, right: int):
        model, ids, conditions = network(), random_ids(3, 6), random_conditions(3)
        padded = F.pad(ids, (left, right), value=9)
        real = F.pad(torch.ones_like(ids, dtype=torch.bool), (left, right), value=False)
        hidden = model(padded, real, condition=conditions)
        assert bool(hidden.isfinite().all())
        assert_same(hidden[:, left : left + 6], model(ids, condition=conditions).detach())

    def test_packed_segments_equal_separate_rows(self):
        model, ids = network(), random_ids(1, 7)
        condition = random_conditions(1)
        packed = model(ids, segment_mask(torch.tensor([[0, 0, 0, 1, 1, 1, 1]])), condition=condition)
        separate = torch.cat([model(part, condition=condition) for part in (ids[:, :3], ids[:, 3:])], dim=1)
        assert_same(packed, separate.detach())

    def test_each_row_has_its_own_condition(self):
        model, ids = network(), random_ids(1, 5).expand(2, 5)
        first, second = model(ids, condition=random_conditions(2)).detach()
        assert float((first - second).abs().amax(-1).min()) > 1e-2

    def test_rotary_dim_rotates_part_of_each_head(self):
        model = DiT(vocab_size=5, d_model=16, num_layers=1, num_heads=2, rotary_dim=4)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        ids, condition = torch.tensor([[0, 1, 2]]), torch.randn(1, 128)
        cos, sin = rotary_angles(torch.arange(3).unsqueeze(0), 4, dtype=torch.float32)
        hidden = model.blocks[0](model.embedding(ids), F.silu(condition), cos, sin)
        shift, scale = model.final_modulation(F.silu(condition)).chunk(2, dim=-1)
        torch.testing.assert_close(
            model(ids, condition=condition), model.final_norm(hidden) * (1 + scale) + shift
        )

    def test_dropout_drops_the_updates_in_training_only(self):
        model, ids, conditions = network(dropout=1.0), random_ids(2, 5), random_conditions(2)
        without_blocks = network()
        without_blocks.blocks = torch.nn.ModuleList()
        assert torch.equal(
            model.train()(ids, condition=conditions), without_blocks(ids, condition=conditions)
        )
        assert torch.equal(model.eval()(ids, condition=conditions), network()(ids, condition=conditions))

    def test_bfloat16_autocast_is_close_to_float32(self):
        model, ids, conditions = network().float(), random_ids(4, 8), random_conditions(4).float()
        exact = model(ids, condition=conditions)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(ids, condition=conditions)
        relative_error = ((rough - exact).square().sum() / exact.square().sum()).sqrt()
        assert 0 < float(relative_error.detach()) < 0.05

    def test_there_are_no_buffers_and_the_meta_device_suffices(self):
        with torch.device("meta"):
            model = DiT(vocab_size=50_000, d_model=1024, num_layers=2, num_heads=16)
            hidden = model(
                torch.zeros(2, 7, dtype=torch.int64), condition=TimestepEmbedding(128)(torch.zeros(2))
            )
        assert hidden.shape == (2, 7, 1024)
        assert not list(model.buffers())

    def test_activation_is_that_of_every_block(self):
        model = DiT(vocab_size=5, d_model=8, num_layers=2, num_heads=2, activation="relu")
        blocks = [block for block in model.blocks if isinstance(block, DiTBlock)]
        assert [type(block.feed_forward.activation) for block in blocks] == [nn.ReLU, nn.ReLU]
        assert model.activation == "relu"

    def test_settings_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match="d_model \\(10\\) must be a multiple of num_heads \\(4\\)"):
            DiT(vocab_size=5, d_model=10, num_layers=1, num_heads=4)
        with pytest.raises(ValueError, match=r"even and in 2\.\.8 .* got 3"):
            DiT(vocab_size=5, d_model=16, num_layers=1, num_heads=2, rotary_dim=3)


def embedding_forward(features: Array, embedding: TimestepEmbedding) -> Array:
    w = arrays(embedding.state_dict())
    inner = silu(features @ w["input.weight"].T + w["input.bias"])
    return inner @ w["output.weight"].T + w["output.bias"]


def random_embedding(num_frequencies: int) -> TimestepEmbedding:
    embedding = TimestepEmbedding(5, num_frequencies)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    return embedding


class TestTimestepEmbedding:
    def test_features_equal_the_reference(self, load_vectors: LoadVectors):
        vectors = load_vectors("blocks")
        embedding = random_embedding(8)
        features = vectors["xlm.timestep_features_dim8.f32"].double().numpy()
        expected = torch.as_tensor(embedding_forward(features, embedding)).float()
        torch.testing.assert_close(embedding(vectors["in.time_cond"]).detach(), expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_embedding_equals_numpy_and_has_the_dtype_of_the_weights(self, dtype: torch.dtype):
        embedding = random_embedding(256).to(dtype)
        t = torch.tensor([0.0, 1e-3, 0.7, 1.0, 6.9], dtype=torch.float64)
        angles = t.numpy()[:, None] * 10000.0 ** (-np.arange(128) / 128)
        features = np.concatenate((np.cos(angles), np.sin(angles)), axis=-1)
        result = embedding(t)
        assert result.dtype == dtype
        expected = torch.as_tensor(embedding_forward(features, embedding))
        error = (result.detach().double() - expected).abs().max() / expected.abs().max()
        assert float(error) < {torch.bfloat16: 0.03, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]

    def test_times_in_bfloat16_are_widened_before_the_angles(self):
        """In bfloat16 the angle 300.0 would be off by up to one radian."""
        embedding = random_embedding(8)
        t = torch.tensor([300.0])
        assert torch.equal(embedding(t.bfloat16()), embedding(t.bfloat16().float()))

    def test_there_are_256_features_by_default(self):
        """As many as in the authors' checkpoints."""
        assert TimestepEmbedding(20).input.weight.shape == (20, 256)

    @pytest.mark.parametrize("num_frequencies", [0, 7])
    def test_odd_numbers_of_features_are_refused(self, num_frequencies: int):
        with pytest.raises(ValueError, match=f"even and at least 2, got {num_frequencies}"):
            TimestepEmbedding(5, num_frequencies)
