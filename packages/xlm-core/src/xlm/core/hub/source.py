"""Weights of a ``ckpt_path``: a checkpoint, a sharded one, an exported folder, or the Hub."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from xlm.core.config.console import say
from xlm.core.config.errors import XLMError
from xlm.core.hub.repository import local_folder
from xlm.core.saving import checkpoints, sharded_files
from xlm.core.saving.folder import put_weights, read_folder, read_own
from xlm.core.saving.weights import Which, read_weights


def load(
    model: nn.Module,
    ckpt_path: str,
    *,
    which: Which = "auto",
    allow_pickle: bool = False,
    network: str | None = None,
) -> None:
    """Load the weights of ``ckpt_path`` into the network, completely or not at all.

    Args:
        model: The network.
        ckpt_path: File, folder, or ``hf://USER/REPO[@REVISION]``.
        which: The moving average, the weights as trained, or the average if there is one.
        allow_pickle: See ``xlm.core.saving.checkpoints.read``; never for folders of safetensors or from the
            Hub.
        network: Class that the weights of a checkpoint must be of; None for any.

    Raises:
        XLMError: If they are missing, damaged, or do not fit.
    """
    state = read(ckpt_path, which=which, allow_pickle=allow_pickle, network=network)
    put_weights(model, state, ckpt_path)


def read(
    ckpt_path: str, *, which: Which = "auto", allow_pickle: bool = False, network: str | None = None
) -> dict[str, Tensor]:
    """The state dict of the plain network; arguments and errors as for :func:`load`."""
    folder = local_folder(ckpt_path)
    if folder is not None:
        kind = read_own(folder).get("weights")
        if which != "auto" and kind is not None and which != kind:
            raise XLMError(f"ckpt_path: {ckpt_path} holds the weights {kind}, not {which}. Set weights=auto")
        return read_folder(folder, ckpt_path)
    path = Path(ckpt_path).expanduser()
    if not path.is_dir():
        return read_weights(path, which=which, allow_pickle=allow_pickle, network=network)
    if not allow_pickle and (reason := sharded_files.mistake(path)) is not None:
        raise XLMError(
            f"ckpt_path: {ckpt_path} is rejected: {reason}. If you trust its author to run code here: "
            "allow_pickle=true"
        )
    if checkpoints.has_checksums(path) and (reason := checkpoints.damage(path)) is not None:
        raise XLMError(f"ckpt_path: {path} is damaged: {reason}")
    if not checkpoints.has_checksums(path):
        say(f"{path} {checkpoints.NO_CHECKSUMS}")
    with TemporaryDirectory(prefix="xlm-") as temporary:
        whole = Path(temporary, "whole.ckpt")
        _consolidate(path, whole)
        return read_weights(whole, which=which, network=network)


def _consolidate(folder: Path, file: Path) -> None:
    """Merge a checkpoint of torch.distributed.checkpoint, as Lightning writes it, into one file."""
    dcp_to_torch_save(folder, file)
    parts = cast("dict[str, Any]", torch.load(file, weights_only=True))
    state = parts.get("state_dict", parts.get("model", {}))  # of ModelParallelStrategy, of FSDPStrategy
    torch.save({**_rest(folder), "state_dict": state}, file)


def _rest(folder: Path) -> dict[str, Any]:
    """The content of Lightning's file beside the shards."""
    file = folder / checkpoints.SHARDED_REST
    return checkpoints.read(file) if file.is_file() else {}


@dataclass(frozen=True)
class About:
    """Description of weights for a model card."""

    kind: Literal["ema", "raw"]
    """Their moving average, or as trained."""
    step: int | None
    """Optimizer steps of the weights, None if not recorded."""


def about(ckpt_path: str, *, which: Which = "auto", allow_pickle: bool = False) -> About:
    """Describe the weights of :func:`load` with the same arguments."""
    folder = local_folder(ckpt_path)
    path = Path(ckpt_path).expanduser()
    if folder is not None:
        own = read_own(folder)
        kind, step = own.get("weights"), own.get("step")
        return About("ema" if kind == "ema" else "raw", step if isinstance(step, int) else None)
    if path.suffix == ".safetensors":
        return About("raw", None)
    content = _rest(path) if path.is_dir() else checkpoints.read(path, allow_pickle=allow_pickle, lazily=True)
    kind = ("ema" if "averaging_state" in content else "raw") if which == "auto" else which
    return About(kind, content.get("global_step"))
