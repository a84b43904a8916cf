"""Published checkpoints of masked diffusion (Sahoo et al. 2024, arXiv:2406.07524) as networks of ours.

The authors' network is :class:`xlm_mdlm.MDLMDiT` under other names, see ``NAMES``. Its vocabulary is that of
GPT-2 and one more token, MASK. In a shell:

    python -m xlm_mdlm.convert_mdlm kuleshov-group/mdlm-owt mdlm-owt

writes a folder for ``MDLMDiT.from_pretrained``. The source is a repository of the Hub or a folder with
safetensors; pickled checkpoints are not read.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from xlm.modules.hub import find, weight_files
from xlm_mdlm.model_mdlm import MDLMDiT

NAMES = {
    "vocab_embed.embedding": "transformer.embedding.weight",
    "sigma_map.mlp.0": "noise_embedding.input",
    "sigma_map.mlp.2": "noise_embedding.output",
    "norm1": "attention_norm",
    "norm2": "feed_forward_norm",
    "attn_qkv": "attention.qkv",
    "attn_out": "attention.output",
    "mlp.0": "feed_forward.input",
    "mlp.2": "feed_forward.output",
    "adaLN_modulation": "modulation",
    "output_layer.norm_final": "transformer.final_norm",
    "output_layer.adaLN_modulation": "transformer.final_modulation",
    "output_layer.linear": "token_head",
}
"""Left: theirs, after ``backbone.`` or ``backbone.blocks.N.``; right: ours, in the network or its block N."""
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
ANGLES = "rotary_emb.inv_freq"
"""A constant that some checkpoints carry: 10000^(-2i / width of a head)."""


def convert_published(
    state: Mapping[str, Tensor], *, num_heads: int, time_conditioning: bool = False, dropout: float = 0.0
) -> MDLMDiT:
    """Make the network that a published state dict holds.

    Args:
        state: Weights by their published names; sizes are read off them.
        num_heads: Number of attention heads, which the weights do not determine; 12 in the paper.
        time_conditioning: Whether the network was conditioned on the noise in training; not so in the paper.
        dropout: For further training.

    Returns:
        The network, in evaluation mode, in float32.

    Raises:
        ValueError: If a weight is missing, unknown or has an impossible shape; names each.
    """
    theirs = {name.removeprefix("backbone."): value for name, value in state.items()}
    embedding, condition = theirs.get("vocab_embed.embedding"), theirs.get("sigma_map.mlp.0.weight")
    blocks = {int(match[1]) for name in theirs if (match := BLOCK.fullmatch(name))}
    inner = theirs.get("blocks.0.mlp.0.weight")
    if embedding is None or condition is None or inner is None:
        raise ValueError(
            "this is no published checkpoint of masked diffusion: it lacks backbone.vocab_embed.embedding, "
            "backbone.sigma_map.mlp.0.weight or backbone.blocks.0.mlp.0.weight"
        )
    _check_angles(theirs.pop(ANGLES, None), embedding.shape[1] // num_heads)
    model = MDLMDiT(
        vocab_size=embedding.shape[0],
        d_model=embedding.shape[1],
        num_layers=len(blocks),
        num_heads=num_heads,
        d_condition=condition.shape[0],
        d_ff=inner.shape[0],
        dropout=dropout,
        time_conditioning=time_conditioning,
    )
    renamed = {_our_name(name): value for name, value in theirs.items()}
    own = model.state_dict()
    problems = [f"missing: {name}" for name in own if name not in renamed]
    problems += [f"unknown: {name}" for name in theirs if _our_name(name) not in own]
    problems += [
        f"{name}: shape {tuple(renamed[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in renamed and renamed[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError("the checkpoint does not have the published layout:\n  " + "\n  ".join(problems))
    model.load_state_dict(renamed)
    return model.eval()


def _our_name(name: str) -> str:
    """Our name of a weight, or theirs if there is none."""
    block = BLOCK.fullmatch(name)
    prefix, rest = (f"transformer.blocks.{block[1]}.", block[2]) if block else ("", name)
    part, _, kind = rest.rpartition(".")
    if rest in NAMES:
        return prefix + NAMES[rest]
    return f"{prefix}{NAMES[part]}.{kind}" if part in NAMES else name


def _check_angles(angles: Tensor | None, d_head: int) -> None:
    expected = 10000.0 ** (-torch.arange(0, d_head, 2) / d_head)
    if angles is not None and (
        angles.shape != expected.shape or not torch.allclose(angles, expected, rtol=1e-3)
    ):
        raise ValueError(f"backbone.{ANGLES} is not 10000^(-2i / {d_head}): is num_heads right?")


def load_published(source: str | Path, *, revision: str | None = None) -> MDLMDiT:
    """Read a published checkpoint with its ``config.json`` (``n_heads``, ``time_conditioning``, ``dropout``).

    Args:
        source: Repository of the Hub, or a folder.
        revision: Branch, tag or commit of the repository.

    Raises:
        ValueError: If there is no such folder, or it does not have the published layout.
        FileNotFoundError: If there are no safetensors.
    """
    folder = Path(find(source))
    if not folder.is_dir():
        patterns = ["*.safetensors", "config.json"]
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = {name: value for file in weight_files(folder) for name, value in load_file(file).items()}
    return convert_published(
        state,
        num_heads=config["n_heads"],
        time_conditioning=config.get("time_conditioning", False),
        dropout=config.get("dropout", 0.0),
    )


def main() -> None:
    """Convert from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xlm_mdlm.convert_mdlm", description=convert_published.__doc__
    )
    parser.add_argument("source", help="repository of the Hub, or folder")
    parser.add_argument("folder", type=Path, help="where to write the network")
    parser.add_argument("--revision", help="branch, tag or commit")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists")
    load_published(arguments.source, revision=arguments.revision).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
