"""Saving and loading: safetensors beside a ``config.json``, in a folder or on the Hugging Face Hub.

This is huggingface_hub's mixin but for five things. Weights above a size are split into several files.
Weights that are missing, left over or of another shape are an error that names each; the mixin would leave
random weights in their place. Pickles are never read. A folder that is not there is called so. And
``config.json`` is bounded: what is too large, too deep or no JSON is one error that names the file.

A part that the network's constructor is given, such as a trunk, stands in ``config.json`` as class and
arguments (``{"_target_": "xlm.modules.DiT", ...}``). Only classes that an installed package declares (entry
points ``xlm.classes``) are made of it, unless the caller sets ``trust_remote_code=True``.

Needs the extra ``hub`` (``xlm-modules[hub]``); nothing else here imports this module.
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import PyTorchModelHubMixin, save_torch_model, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file
from torch import Tensor, nn

CONFIG = "config.json"
OWN = "xlm"
"""Key of ``config.json`` under which XLM keeps what is no argument of the network."""
FORMAT_VERSION = 4
"""Latest version of ``config.json`` that is read."""
LARGEST = 2**18
"""Bytes of ``config.json``."""
DEEPEST = 32
"""Levels of lists and mappings in one another."""
LONGEST_NUMBER = 40
"""Digits of an integer."""
TARGET = "_target_"
"""Key of the class of a part in ``config.json``, as in the configs of Hydra."""
CLASSES = "xlm.classes"
"""Entry points with which packages declare the classes that a config may name."""


class HubModel(PyTorchModelHubMixin):
    """Gives a network ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``."""

    max_shard_size = "5GB"
    """Size of a file of weights from which on they are split."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the mixin remember arguments that are modules; they are described when the network is saved."""
        super().__init_subclass__(coders={nn.Module: (_unchanged, _unchanged)}, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        save_torch_model(self, save_directory, max_shard_size=self.max_shard_size)
        kind = {"architectures": [type(self).__name__], "model_type": type(self).__module__.split(".")[0]}
        given = self._hub_mixin_config if isinstance(self._hub_mixin_config, dict) else {}
        parameters = inspect.signature(type(self)).parameters
        arguments = {
            name: describe_part(name, value) if isinstance(value, nn.Module) else value
            for name, value in given.items()
            if value is not None or parameters[name].default is not None
        }
        (save_directory / CONFIG).write_text(json.dumps(kind | arguments, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """Make the network that a folder or a repository of the Hub holds, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, or USER/NAME on the Hub.
            force_download: Whether to download what is in the cache, too.
            token: For the Hub; None for that of ``hf auth login``.
            cache_dir: Where downloads are kept; None for the Hub's cache.
            local_files_only: Whether to take a repository from the cache only.
            revision: Branch, tag or commit of the repository; None for main.
            **model_kwargs: ``map_location`` and ``strict`` as in torch; ``trust_remote_code``, whether
                ``config.json`` may name any class (False); arguments of the network, which come before those
                that ``config.json`` holds.

        Raises:
            ValueError: If there is no such folder, its ``config.json`` cannot be used or names a class that
                no package declares, or it has none and no arguments are given.
            FileNotFoundError: If it has no weights.
            RuntimeError: If weights are missing, left over or of another shape, naming each.
        """
        place = find(pretrained_model_name_or_path)
        if not Path(place).is_dir():
            place = snapshot_download(
                place,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=["*.safetensors", CONFIG],
            )
        check_config(Path(place, CONFIG))
        return super().from_pretrained(place, **model_kwargs)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        trust_remote_code: bool = False,
        **model_kwargs: object,
    ) -> Self:
        # model_id is a folder: from_pretrained has downloaded what is to be downloaded.
        folder = Path(model_id)
        files = weight_files(folder)
        if not model_kwargs:
            raise ValueError(f"{model_id} has no {CONFIG} with the arguments of {cls.__name__}")
        parts = {
            name: make_part(name, cast("Mapping[str, Any]", value), trusted=trust_remote_code)
            for name, value in model_kwargs.items()
            if isinstance(value, Mapping) and TARGET in value
        }
        model = cls(**model_kwargs | parts)
        assert isinstance(model, nn.Module)
        state = {name: value for file in files for name, value in load_file(file).items()}
        model.load_state_dict(state | dict(tied_weights(model, state)), strict=strict)
        return model.to(map_location).eval()


def describe_part(name: str, part: nn.Module) -> dict[str, Any]:
    """A part of a network as ``config.json`` holds it: its class, and the arguments it was made with.

    Args:
        name: The network's argument, for the message.
        part: Keeps each argument of its constructor in an attribute of the same name.

    Returns:
        The arguments, with the class under ``_target_``.

    Raises:
        ValueError: If an argument is not kept, or is no plain value.
    """
    own = f"{type(part).__module__}.{type(part).__qualname__}"
    description: dict[str, Any] = {TARGET: _declared().get(own, own)}
    for argument in inspect.signature(type(part)).parameters:
        if not hasattr(part, argument):
            raise ValueError(
                f"{name} ({own}) does not keep its argument {argument}, so config.json cannot hold it: set "
                f"self.{argument} in its constructor"
            )
        description[argument] = getattr(part, argument)
    try:
        json.dumps(description)
    except TypeError as error:
        raise ValueError(f"{name} ({own}) has arguments that config.json cannot hold: {error}") from error
    return description


def make_part(name: str, description: Mapping[str, Any], *, trusted: bool = False) -> nn.Module:
    """Make the part of a network that :func:`describe_part` described.

    Args:
        name: The network's argument, for the message.
        description: Its class under ``_target_``, and its arguments.
        trusted: Whether the class may be any importable one.

    Returns:
        The part, with random weights.

    Raises:
        ValueError: If no installed package declares the class, it is no network, or it takes other arguments.
    """
    target = description[TARGET]
    names = {alias: path for path, alias in _declared().items()}
    own = names.get(target, target if trusted else None) if isinstance(target, str) else None
    if own is None:
        raise ValueError(
            f"{name}: no installed package declares {target!r} (entry points {CLASSES}). If you trust who "
            f"wrote config.json: trust_remote_code=True; or give it yourself: {name}=..."
        )
    module, _, attribute = str(own).rpartition(".")
    made = getattr(import_module(module), attribute)
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise ValueError(f"{name}: {target} is no torch.nn.Module")
    try:
        return made(**{key: value for key, value in description.items() if key != TARGET})
    except TypeError as error:
        raise ValueError(f"{name}: {target} does not take the arguments of config.json: {error}") from error


def _declared() -> dict[str, str]:
    """Where each declared class is defined, and the name under which configs know it."""
    return {point.value.replace(":", "."): point.name for point in entry_points(group=CLASSES)}


def _unchanged(value: Any) -> Any:
    return value


def find(place: str | Path) -> str:
    """The folder that is meant, or else the repository.

    Raises:
        ValueError: If there is no such folder and no repository can have this name.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.exists():
        raise ValueError(f"{place} is a file; its folder is required")
    try:
        if isinstance(place, str):
            validate_repo_id(place)
            return place
    except HFValidationError:  # its message is about the names of repositories
        pass
    raise ValueError(f"{place}: there is no such folder (and a repository of the Hub is called USER/NAME)")


def check_config(file: Path) -> None:
    """See that a ``config.json``, where there is one, holds the arguments of a network.

    Raises:
        ValueError: If it is too large or too deep, is no JSON in UTF-8, holds something else, or is of a
            later version.
    """
    if not file.is_file():
        return
    with file.open("rb") as stream:
        content = stream.read(LARGEST + 1)
    try:
        if len(content) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST // 1024} KiB")
        found: object = json.loads(content.decode("utf-8"), parse_int=_integer)
        _check_depth(found)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be used: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} cannot be used: it holds a {type(found).__name__}, not arguments by name")
    own = cast("dict[str, object]", found).get(OWN)
    version = cast("dict[str, object]", own).get("format_version") if isinstance(own, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}, this xlm-modules reads up to {FORMAT_VERSION}. "
            "Update xlm-modules."
        )


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"it holds an integer of {len(digits):,} digits, {digits[:10]}...")
    return int(digits)


def _check_depth(value: object, levels: int = DEEPEST) -> None:
    if isinstance(value, dict | list):
        if levels == 0:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        inner = cast("Iterable[object]", value.values() if isinstance(value, dict) else value)
        for part in inner:
            _check_depth(part, levels - 1)


def weight_files(folder: Path) -> list[Path]:
    """Files of a network's weights in ``folder``: one, or the parts of a large network.

    Raises:
        FileNotFoundError: If there is none.
    """
    single = folder / "model.safetensors"
    parts = sorted(folder.glob("model-?????-of-?????.safetensors"))
    if not single.is_file() and not parts:
        raise FileNotFoundError(f"{folder} has no model.safetensors and no model-NNNNN-of-NNNNN.safetensors")
    return [single] if single.is_file() else parts


def tied_weights(model: nn.Module, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights that ``state`` lacks because they are another name of one that it has (tied embeddings)."""
    own = model.state_dict()
    names = {_place(own[name]): name for name in state.keys() & own.keys()}
    for name in own.keys() - state.keys():
        if (other := names.get(_place(own[name]))) is not None:
            yield name, state[other]


def _place(weight: Tensor) -> tuple[int, torch.Size]:
    return weight.data_ptr(), weight.shape
