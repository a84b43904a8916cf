"""Published checkpoints: parity with a forward pass in numpy that reads the published names only."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from xlm_mdlm import MDLMDiT
from xlm_mdlm.convert_mdlm import convert_published, load_published, main

D_MODEL, D_FF, D_CONDITION, VOCAB, NUM_LAYERS, NUM_HEADS = 16, 32, 6, 11, 2, 4
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def published() -> dict[str, Tensor]:
    """A random checkpoint with the names, shapes and order of the published ones."""
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (VOCAB, D_MODEL),
        "sigma_map.mlp.0.weight": (D_CONDITION, 256),
        "sigma_map.mlp.0.bias": (D_CONDITION,),
        "sigma_map.mlp.2.weight": (D_CONDITION, D_CONDITION),
        "sigma_map.mlp.2.bias": (D_CONDITION,),
    }
    for layer in range(NUM_LAYERS):
        shapes |= {
            f"blocks.{layer}.norm1.weight": (D_MODEL,),
            f"blocks.{layer}.attn_qkv.weight": (3 * D_MODEL, D_MODEL),
            f"blocks.{layer}.attn_out.weight": (D_MODEL, D_MODEL),
            f"blocks.{layer}.norm2.weight": (D_MODEL,),
            f"blocks.{layer}.mlp.0.weight": (D_FF, D_MODEL),
            f"blocks.{layer}.mlp.0.bias": (D_FF,),
            f"blocks.{layer}.mlp.2.weight": (D_MODEL, D_FF),
            f"blocks.{layer}.mlp.2.bias": (D_MODEL,),
            f"blocks.{layer}.adaLN_modulation.weight": (6 * D_MODEL, D_CONDITION),
            f"blocks.{layer}.adaLN_modulation.bias": (6 * D_MODEL,),
        }
    shapes |= {
        "output_layer.norm_final.weight": (D_MODEL,),
        "output_layer.linear.weight": (VOCAB, D_MODEL),
        "output_layer.linear.bias": (VOCAB,),
        "output_layer.adaLN_modulation.weight": (2 * D_MODEL, D_CONDITION),
        "output_layer.adaLN_modulation.bias": (2 * D_MODEL,),
    }
    generator = torch.Generator().manual_seed(0)
    return {
        f"backbone.{name}": 0.3 * torch.randn(shape, generator=generator) + ("norm" in name)
        for name, shape in shapes.items()
    }


def forward(weights: dict[str, Tensor], ids: list[int], noise: float) -> Array:
    """Logits (length, vocab) of one row: embedding, blocks with the stream as residual, modulated head."""
    w = {name.removeprefix("backbone."): value.double().numpy() for name, value in weights.items()}

    def silu(x: Array) -> Array:
        return x / (1 + np.exp(-x))

    def modulated_norm(x: Array, scale_of_norm: Array, shift: Array, scale: Array) -> Array:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-5) * scale_of_norm * (1 + scale) + shift

    frequencies = np.exp(-math.log(10000) * np.arange(128) / 128)
    features = np.concatenate([np.cos(noise * frequencies), np.sin(noise * frequencies)])
    hidden = silu(w["sigma_map.mlp.0.weight"] @ features + w["sigma_map.mlp.0.bias"])
    c = silu(w["sigma_map.mlp.2.weight"] @ hidden + w["sigma_map.mlp.2.bias"])

    d_head, length = D_MODEL // NUM_HEADS, len(ids)
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, d_head, 2) / d_head))

    def rotate(x: Array) -> Array:  # (length, d_head), pairs (i, i + d_head / 2)
        a, b = x[:, : d_head // 2], x[:, d_head // 2 :]
        return np.hstack([a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)])

    x = w["vocab_embed.embedding"][ids]
    for layer in range(NUM_LAYERS):
        block = {
            name.split(".", 2)[2]: value for name, value in w.items() if name.startswith(f"blocks.{layer}.")
        }
        modulation = block["adaLN_modulation.weight"] @ c + block["adaLN_modulation.bias"]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.reshape(6, D_MODEL)
        qkv = modulated_norm(x, block["norm1.weight"], shift_1, scale_1) @ block["attn_qkv.weight"].T
        qkv = qkv.reshape(length, 3, NUM_HEADS, d_head)
        heads: list[Array] = []
        for head in range(NUM_HEADS):
            scores = rotate(qkv[:, 0, head]) @ rotate(qkv[:, 1, head]).T / math.sqrt(d_head)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(shares / shares.sum(1, keepdims=True) @ qkv[:, 2, head])
        x = x + gate_1 * (np.hstack(heads) @ block["attn_out.weight"].T)
        inner = modulated_norm(x, block["norm2.weight"], shift_2, scale_2) @ block["mlp.0.weight"].T
        inner = inner + block["mlp.0.bias"]
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + gate_2 * (inner @ block["mlp.2.weight"].T + block["mlp.2.bias"])
    shift, scale = (
        w["output_layer.adaLN_modulation.weight"] @ c + w["output_layer.adaLN_modulation.bias"]
    ).reshape(2, D_MODEL)
    last = modulated_norm(x, w["output_layer.norm_final.weight"], shift, scale)
    return last @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


IDS = [3, 10, 10, 0, 7, 1]


@pytest.mark.parametrize(("time_conditioning", "noise"), [(False, 0.0), (True, 1.7)])
def test_logits_are_those_of_the_published_network(time_conditioning: bool, noise: float) -> None:
    weights = published()
    model = convert_published(weights, num_heads=NUM_HEADS, time_conditioning=time_conditioning).double()
    logits = model(torch.tensor([IDS]), None, torch.tensor([noise], dtype=torch.float64))[0].detach().numpy()
    assert logits == pytest.approx(forward(weights, IDS, noise), rel=1e-9, abs=1e-9)


def test_a_folder_is_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "published", tmp_path / "ours"
    source.mkdir()
    weights = published()
    angles = {"backbone.rotary_emb.inv_freq": 10000.0 ** (-torch.arange(0, 4, 2) / 4)}
    save_file(weights | angles, source / "model.safetensors")
    (source / "config.json").write_text(
        json.dumps({"n_heads": NUM_HEADS, "dropout": 0.1, "model_type": "mdlm"})
    )
    monkeypatch.setattr("sys.argv", ["convert_mdlm", str(source), str(target)])
    main()
    loaded = MDLMDiT.from_pretrained(target)
    ids = torch.tensor([IDS])
    assert torch.equal(loaded(ids), load_published(source)(ids))
    assert loaded(ids)[0].detach().numpy() == pytest.approx(forward(weights, IDS, 0.0), rel=1e-4, abs=1e-4)
    with pytest.raises(SystemExit):
        main()


def test_what_does_not_fit_is_named() -> None:
    weights = published()
    del weights["backbone.blocks.1.norm2.weight"]
    weights["backbone.blocks.0.extra.weight"] = torch.zeros(1)
    weights["backbone.output_layer.linear.bias"] = torch.zeros(VOCAB + 1)
    with pytest.raises(ValueError, match="published layout") as error:
        convert_published(weights, num_heads=NUM_HEADS)
    for line in (
        "missing: transformer.blocks.1.feed_forward_norm.weight",
        "unknown: blocks.0.extra.weight",
        "token_head.bias: shape (12,) instead of (11,)",
    ):
        assert line in str(error.value)
    with pytest.raises(ValueError, match="no published checkpoint"):
        convert_published({"a": torch.zeros(1)}, num_heads=1)
    with pytest.raises(ValueError, match="is num_heads right"):
        convert_published(published() | {"backbone.rotary_emb.inv_freq": torch.ones(4)}, num_heads=NUM_HEADS)
