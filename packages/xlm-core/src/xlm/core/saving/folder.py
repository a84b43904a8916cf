"""A folder of safetensors: reading its weights, and loading them into a network."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xlm.core.config.console import say
from xlm.core.config.errors import XLMError
from xlm.core.config.format import FORMAT_VERSION, KEY, check_version
from xlm.core.config.integrity import damaged_files, parse_record
from xlm.core.config.texts import read_json
from xlm.core.saving.checkpoints import NO_CHECKSUMS
from xlm.core.saving.sharded_state import own_part, put_whole_state

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 2**26
"""Size limit of an index in bytes; it has one line per weight."""
PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
CONFIG = "config.json"
OWN = "xlm"
"""Key of ``config.json`` under which XLM stores more than the constructor's arguments."""
FILES = "files"
"""Key below ``xlm``: sizes and checksums of the weights and of the tokenizer's files."""


def read_folder(folder: Path, origin: str) -> dict[str, Tensor]:
    """The weights of a folder, from one file or from the parts that an index names.

    Args:
        folder: The folder.
        origin: The user's name for it, for messages.

    Raises:
        XLMError: If there are none, or a file is damaged or not safetensors.
    """
    if (folder / SINGLE_FILE).is_file():
        files = [folder / SINGLE_FILE]
    elif (folder / INDEX).is_file():
        files = [folder / name for name in _parts(folder / INDEX, origin)]
    else:
        raise XLMError(
            f"ckpt_path: {origin} holds neither {SINGLE_FILE} nor {INDEX}. Other formats are not "
            "loaded from a folder or from the Hub: pickles can run code"
        )
    _check_files(folder, [file.name for file in files if file.is_file()], origin)
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_file(file, origin)
    return state


def _check_files(folder: Path, weights: list[str], origin: str) -> None:
    """Verify weights and tokenizer files against the checksums in ``config.json``."""
    record = parse_record(read_own(folder).get(FILES)) or {}
    if unknown := [name for name in weights if name not in record]:
        say(f"{', '.join(unknown)} of {origin} {NO_CHECKSUMS}")
    present = {name: known for name, known in record.items() if name in weights or _is_file_of(folder, name)}
    if wrong := list(damaged_files(folder, present)):
        raise XLMError(
            f"ckpt_path: {origin} is damaged: {', '.join(wrong)}. Download it again; if the file was changed "
            f"on purpose, remove `{OWN}.{FILES}` from its {CONFIG}"
        )


def _is_file_of(folder: Path, name: str) -> bool:
    return "/" not in name and "\\" not in name and (folder / name).is_file()


def read_file(file: Path, origin: str) -> dict[str, Tensor]:
    """The tensors of one file.

    Raises:
        XLMError: If it is missing, damaged or not safetensors.
    """
    if not file.is_file():
        raise XLMError(f"ckpt_path: {origin} lacks the file {file.name}")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise XLMError(
            f"ckpt_path: {file.name} of {origin} is damaged or not a safetensors file: {error}"
        ) from error


def _parts(index: Path, origin: str) -> list[str]:
    content = read_json(index, f"ckpt_path: {index.name} of {origin}", largest=LARGEST_INDEX)
    try:
        weight_map = content["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise XLMError(f"ckpt_path: {index.name} of {origin} is not an index of weights: {error}") from error
    if strange := [name for name in names if not PART.fullmatch(name)]:
        raise XLMError(
            f"ckpt_path: {index.name} of {origin} names {', '.join(map(repr, strange))}; "
            "the parts of a model are files model-NNNNN-of-NNNNN.safetensors beside it"
        )
    return names


def put_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict completely or not at all.

    Raises:
        XLMError: If the weights do not fit; names every missing or unexpected one and every wrong shape.
    """
    own = model.state_dict()
    whole = {**state, **dict(_tied(own, state))}
    problems = [
        *(f"  missing: {name}" for name in own if name not in whole),
        *(f"  unexpected: {name}" for name in whole if name not in own),
        *(
            f"  {name}: shape {tuple(whole[name].shape)}, the network has {tuple(own[name].shape)}"
            for name in own
            if name in whole and whole[name].shape != own[name].shape
        ),
    ]
    if problems:
        raise XLMError(
            "\n".join([f"ckpt_path: the weights of {origin} do not fit the network in `model`:", *problems])
        )
    put_whole_state(model, whole)


def _tied(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Shared weights that were saved under another of their names."""

    def place(weight: Tensor) -> tuple[int, torch.Size]:
        return own_part(weight).data_ptr(), weight.shape

    names = {place(own[name]): name for name in own if name in state}
    for name in own:
        if name not in state and (other := names.get(place(own[name]))) is not None:
            yield name, state[other]


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder, empty if there is none.

    Raises:
        XLMError: If it is not a JSON mapping, or of a later version.
    """
    file = folder / CONFIG
    if not file.is_file():
        return {}
    content = read_json(file, str(file))
    if not isinstance(content, dict):
        raise XLMError(f"{file} holds a {type(content).__name__}, not the arguments of a network by name")
    config = cast("dict[str, Any]", content)
    check_version(_own(config).get(KEY, FORMAT_VERSION), str(file))
    return config


def read_own(folder: Path) -> dict[str, Any]:
    """The entries of XLM in ``config.json``, beside the network's arguments."""
    return _own(read_config(folder))


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    own = config.get(OWN)
    return cast("dict[str, Any]", own) if isinstance(own, dict) else {}
