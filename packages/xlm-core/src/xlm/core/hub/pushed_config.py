"""The training config beside a model's weights, as an experiment.

``xlm job_type=generate job_name=x ckpt_path=hf://USER/REPO`` names no experiment: the config that was pushed
with the model becomes one, so any key can be overridden as usual. It is untrusted, so only the keys that
describe the model and its data are used, after the checks of :mod:`xlm.core.hub.allow_list`.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import yaml
from omegaconf import MISSING

from xlm.core.config.errors import XLMError
from xlm.core.config.recorded import read_config
from xlm.core.hub.allow_list import check_names, check_objects
from xlm.core.hub.places import is_elsewhere
from xlm.core.hub.references import is_plain, without_defaults
from xlm.core.hub.repository import HubModel

FILE = "xlm_config.yaml"
TOKENIZER = "tokenizer*.json"
EXPERIMENT = "pushed_with_the_model"
CHOICES = ("experiment", "recipe", "task", "model", "model_type", "datamodule")
"""Groups that select a model on the command line."""
TAKEN = (
    "task", "model", "noise", "loss", "loss_metrics", "predictor", "datamodule", "optimizer", "lr_scheduler",
    "monitor", "monitor_mode", "seed", "text_column", "prompt_column", "target_column",
)  # fmt: skip
"""Keys of a pushed config that are used; the others belong to the author's machine and run."""
TAKEN_OF_TRAINER = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
LOCAL = (
    "job_type", "job_name", "output_dir", "ckpt_path", "from", "weights", "allow_pickle", "source", "hub",
    "trust_remote_code", "logger", "vocab",
)  # fmt: skip
"""Keys that are not pushed: they describe the start of a run, not the model."""
SAVED = "saved"
"""Argument of a tokenizer trained on the data: the folder of the pushed files."""
PLACES = ("data_files", SAVED)
"""Keys that may name files of this machine."""
LOCAL_OF_DATA = ("cache_dir", "num_proc")


def portable(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The composed config to push: without settings and paths of this machine, and without resolvers.

    Args:
        config: The config with its references.
        resolved: The same with each reference resolved, for texts that are more than one reference.
    """
    simple = cast("dict[str, Any]", _without_resolvers(config, resolved))
    kept = {key: _without_places(value, key) for key, value in simple.items() if key not in LOCAL}
    data = cast("dict[str, Any]", kept.get("datamodule", {}))
    kept["datamodule"] = {key: value for key, value in data.items() if key not in LOCAL_OF_DATA}
    return kept


def _without_resolvers(node: object, resolved: object) -> Any:
    """``node`` with its resolved value for each text that is more than a reference to a key."""
    if isinstance(node, Mapping) and isinstance(resolved, Mapping):
        values = cast("Mapping[str, object]", resolved)
        return {
            name: _without_resolvers(value, values[name])
            for name, value in cast("Mapping[str, object]", node).items()
        }
    if isinstance(node, list) and isinstance(resolved, list):
        pairs = zip(cast("list[object]", node), cast("list[object]", resolved), strict=True)
        return [_without_resolvers(value, other) for value, other in pairs]
    if not isinstance(node, str) or is_plain(node):
        return node
    return MISSING if isinstance(resolved, str) and is_elsewhere(resolved) else resolved


def _without_places(node: object, key: str) -> Any:
    """``node`` with ``???`` for files outside the working directory."""
    if isinstance(node, Mapping):
        content = cast("Mapping[str, object]", node)
        return {
            name: _without_places(value, key if key in PLACES else name) for name, value in content.items()
        }
    if isinstance(node, list):
        return [_without_places(value, key) for value in cast("list[object]", node)]
    is_place = key in PLACES and isinstance(node, str) and Path(node).expanduser().is_absolute()
    return MISSING if is_place else node


@contextmanager
def as_experiment(arguments: list[str]) -> Generator[tuple[list[str], Path | None]]:
    """Make the config beside the model in ``ckpt_path`` an experiment, if the command line names none.

    Args:
        arguments: The command line, without the program's name.

    Yields:
        The new command line, and the folder of the experiment; None if there is nothing to do.

    Raises:
        XLMError: If the config is unavailable or rejected.
    """
    given = {key.lstrip("+"): value for key, _, value in (argument.partition("=") for argument in arguments)}
    ckpt_path = given.get("ckpt_path", "").strip("'\"")
    file = None if any(group in given for group in CHOICES) else _find(ckpt_path)
    if file is None:
        yield arguments, None
        return
    config = read(file, ckpt_path, trusted=given.get("trust_remote_code", "").lower() == "true")
    with TemporaryDirectory(prefix="xlm-") as folder:
        experiment = Path(folder, "experiment", f"{EXPERIMENT}.yaml")
        experiment.parent.mkdir()
        _use_saved_tokenizer(config, ckpt_path)
        config["datamodule"] = {**_local_settings(), **config.get("datamodule", {})}
        experiment.write_text("# @package _global_\n" + yaml.safe_dump(config, sort_keys=False), "utf-8")
        yield [*arguments, f"experiment={EXPERIMENT}"], Path(folder)


def _find(ckpt_path: str) -> Path | None:
    model = HubModel.parse(ckpt_path)
    file = (model.fetch((FILE,)) if model is not None else Path(ckpt_path).expanduser()) / FILE
    if file.is_file() and ckpt_path:
        return file
    if model is not None:
        raise XLMError(
            f"ckpt_path: {model} has no {FILE}: select a config on the command line (experiment=NAME)"
        )
    return None


def _use_saved_tokenizer(config: dict[str, Any], ckpt_path: str) -> None:
    """Set the folder of the model's own tokenizer, which would otherwise be trained on other data."""
    task = config.get("task")
    tokenizer = cast("dict[str, Any]", task).get("tokenizer") if isinstance(task, dict) else None
    if isinstance(tokenizer, dict) and SAVED in tokenizer:
        model = HubModel.parse(ckpt_path)
        folder = model.fetch((TOKENIZER,)) if model is not None else Path(ckpt_path).expanduser()
        tokenizer[SAVED] = str(folder.absolute())


def _local_settings() -> dict[str, Any]:
    """Settings of data modules that depend on the machine."""
    base = Path(__file__).parents[1] / "configs" / "datamodule" / "base.yaml"
    settings = cast("dict[str, Any]", yaml.safe_load(base.read_text("utf-8")))
    return {key: settings[key] for key in LOCAL_OF_DATA}


def read(file: Path, origin: str, *, trusted: bool = False) -> dict[str, Any]:
    """The checked part of a pushed config that is used.

    Args:
        file: The file.
        origin: The user's name for it, for messages.
        trusted: Whether it may name any class.

    Raises:
        XLMError: If it is not a config, or names anything that is not allowed.
    """
    config = read_config(file, f"The config of {origin}")
    taken = {key: config[key] for key in TAKEN if key in config}
    if isinstance(data := taken.get("datamodule"), dict):
        kept = cast("dict[str, Any]", data).items()
        taken["datamodule"] = {key: value for key, value in kept if key not in LOCAL_OF_DATA}
    if isinstance(trainer := config.get("trainer"), dict):
        taken["trainer"] = {key: trainer[key] for key in TAKEN_OF_TRAINER if key in trainer}
    if not trusted:
        check_names(taken, origin)
        check_objects(taken, origin)
        taken = without_defaults(taken)
    return taken
