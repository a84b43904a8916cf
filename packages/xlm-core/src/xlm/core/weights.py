"""The network's weights of a checkpoint, averaged or as trained."""

from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from torch import Tensor, nn

from xlm.core import checkpoints
from xlm.core.errors import XLMError

Which = Literal["auto", "ema", "raw"]
"""``ema``: the moving average; ``raw``: as trained; ``auto``: the average where the checkpoint has one."""
PREFIX = "model."


class WeightOptions(TypedDict):
    """Keyword arguments of ``read_weights`` and ``load_weights``."""

    which: Which
    allow_pickle: bool


def read_weights(checkpoint: Path, *, which: Which = "auto", allow_pickle: bool = False) -> dict[str, Tensor]:
    """The state dict of the plain network, from a checkpoint of training or a file of safetensors.

    Args:
        checkpoint: The file.
        which: Which weights. A training with EMA keeps both kinds in every checkpoint.
        allow_pickle: See ``xlm.core.checkpoints.read``.

    Raises:
        XLMError: When the file is not there, is damaged, or has no averaged weights and these are asked for.
    """
    if checkpoint.suffix == ".safetensors":
        return _read_safetensors(checkpoint, which)
    content = checkpoints.read(checkpoint, allow_pickle=allow_pickle)
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


def load_weights(
    model: nn.Module, checkpoint: Path, *, which: Which = "auto", allow_pickle: bool = False
) -> None:
    """Put the weights of a checkpoint into the network (see ``read_weights``).

    Raises:
        XLMError: As ``read_weights``, and when they belong to another network.
    """
    state = read_weights(checkpoint, which=which, allow_pickle=allow_pickle)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise XLMError(f"ckpt_path: {checkpoint} does not fit the network in `model`.\n{error}") from error


def _read_safetensors(file: Path, which: Which) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if which == "ema":
        raise XLMError(
            f"ckpt_path: {file} holds one set of weights; weights=ema needs a checkpoint of training"
        )
    if not file.is_file():
        raise XLMError(f"ckpt_path: there is no file {file}")
    try:
        state: dict[str, Any] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise XLMError(f"ckpt_path: {file} is not a readable file of safetensors: {error}") from error
    return {name.removeprefix(PREFIX): value for name, value in state.items()}
