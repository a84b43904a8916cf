"""Weights from wherever ``ckpt_path`` points: a checkpoint, a sharded one, a folder to share, the Hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from xlm.core import checkpoints
from xlm.core.errors import XLMError
from xlm.core.hub.folder import put_weights, read_config, read_folder
from xlm.core.hub.repository import local_folder
from xlm.core.weights import Which, read_weights


def load(
    model: nn.Module, ckpt_path: str, *, which: Which = "auto", allow_pickle: bool = False, own: bool = False
) -> None:
    """Put the weights that ``ckpt_path`` names into the network, all of them or none.

    Args:
        model: The network.
        ckpt_path: File, folder, or ``hf://USER/REPO[@REVISION]``.
        which: The moving average, the weights as trained, or the average if there is one.
        own: Whether it is a checkpoint of the run itself, whose author is the user.
        allow_pickle: See ``xlm.core.checkpoints.read``; never for what comes as a folder or from the Hub.

    Raises:
        XLMError: When they are not there, damaged, or do not fit.
    """
    put_weights(model, read(ckpt_path, which=which, allow_pickle=allow_pickle, own=own), ckpt_path)


def read(
    ckpt_path: str, *, which: Which = "auto", allow_pickle: bool = False, own: bool = False
) -> dict[str, Tensor]:
    """The state dict of the plain network; arguments and errors as for :func:`load`."""
    folder = local_folder(ckpt_path)
    if folder is not None:
        kind = read_config(folder).get("xlm", {}).get("weights")
        if which != "auto" and kind is not None and which != kind:
            raise XLMError(f"ckpt_path: {ckpt_path} holds the weights {kind}, not {which}. Set weights=auto")
        return read_folder(folder, ckpt_path)
    path = Path(ckpt_path).expanduser()
    if not path.is_dir():
        return read_weights(path, which=which, allow_pickle=allow_pickle)
    if not (own or allow_pickle):
        raise XLMError(
            f"ckpt_path: {ckpt_path} is a sharded checkpoint. Its table of contents is a pickle, which can "
            "run code of its author. If it is yours or you trust it: allow_pickle=true"
        )
    with TemporaryDirectory(prefix="xlm-") as temporary:
        whole = Path(temporary, "whole.ckpt")
        _consolidate(path, whole)
        return read_weights(whole, which=which)


def _consolidate(folder: Path, file: Path) -> None:
    """Turn a checkpoint of torch.distributed.checkpoint, as Lightning writes it, into one file."""
    dcp_to_torch_save(folder, file)
    parts = cast("dict[str, Any]", torch.load(file, weights_only=True))
    rest = folder / "meta.pt"  # what Lightning keeps beside the shards
    content = torch.load(rest, weights_only=True, map_location="cpu") if rest.is_file() else {}
    state = parts.get("state_dict", parts.get("model", {}))  # of ModelParallelStrategy, of FSDPStrategy
    torch.save({**content, "state_dict": state}, file)


def kind_of(checkpoint: Path, which: Which) -> Which:
    """Which weights ``which`` means for this checkpoint: ``ema`` or ``raw``."""
    if which != "auto" or not checkpoint.is_file() or checkpoint.suffix == ".safetensors":
        return "raw" if which == "auto" else which
    return "ema" if "averaging_state" in checkpoints.read(checkpoint, lazily=True) else "raw"
