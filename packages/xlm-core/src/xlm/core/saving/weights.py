"""The network's weights in a checkpoint, averaged or as trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import torch
import xxhash
from torch import Tensor, nn

from xlm.core.config.console import say
from xlm.core.config.errors import XLMError
from xlm.core.saving import checkpoints
from xlm.core.saving.folder import read_file

Which = Literal["auto", "ema", "raw"]
"""``ema``: the moving average; ``raw``: as trained; ``auto``: the average if the checkpoint has one."""
PREFIX = "model."


class WeightOptions(TypedDict):
    """Keyword arguments of ``read_weights`` and :func:`xlm.core.hub.source.load`."""

    which: Which
    allow_pickle: bool


def read_weights(
    checkpoint: Path, *, which: Which = "auto", allow_pickle: bool = False, network: str | None = None
) -> dict[str, Tensor]:
    """The state dict of the plain network, from a checkpoint of training or a file of safetensors.

    Args:
        checkpoint: The file.
        which: Which weights. With EMA every checkpoint has both kinds.
        allow_pickle: See ``xlm.core.saving.checkpoints.read``.
        network: Class that the weights must be of, if the checkpoint records one; None for any. Weights of
            another family may have the same names and shapes.

    Raises:
        XLMError: If the file is missing, damaged or of another class, or lacks the averaged weights.
    """
    if checkpoint.suffix == ".safetensors":
        return _read_safetensors(checkpoint, which)
    content = checkpoints.read(checkpoint, allow_pickle=allow_pickle)
    if not checkpoints.has_checksums(checkpoint):
        say(f"{checkpoint} {checkpoints.NO_CHECKSUMS}")
    if network is not None:
        _check_network(checkpoint, content.get("xlm_origin"), network)
    has_average = "averaging_state" in content
    if which == "ema" and not has_average:
        raise XLMError(
            f"ckpt_path: {checkpoint} has no averaged weights; it was trained without callbacks=ema"
        )
    key = "current_model_state" if which == "raw" and has_average else "state_dict"
    if key not in content:
        raise XLMError(f"ckpt_path: {checkpoint} is not a checkpoint of training: it has no {key}")
    state = cast("dict[str, Tensor]", content[key])
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


def _check_network(checkpoint: Path, origin: object, network: str) -> None:
    found = cast("Mapping[str, Any]", origin).get("network") if isinstance(origin, Mapping) else None
    if found not in (None, network):  # earlier versions wrote none
        raise XLMError(
            f"ckpt_path: {checkpoint} has weights of {found}; the network of this config is {network}. "
            "Set the experiment of that run. If the class is a copy of it: export the run, then "
            "ckpt_path=FOLDER"
        )


def _read_safetensors(file: Path, which: Which) -> dict[str, Tensor]:
    if which == "ema":
        raise XLMError(
            f"ckpt_path: {file} holds one set of weights; weights=ema needs a checkpoint of training"
        )
    state = read_file(file, str(file.parent))
    say(f"{file} {checkpoints.NO_CHECKSUMS}")
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


def fingerprint(network: nn.Module) -> str:
    """Hash of all weights and buffers: equal for equal weights, wherever they were read from."""
    digest = xxhash.xxh3_128()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
