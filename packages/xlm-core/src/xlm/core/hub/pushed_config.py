"""The training config that lies beside a model's weights, as an experiment.

``xlm job_type=generate job_name=x ckpt_path=hf://USER/REPO`` names no experiment: the config that was pushed
with the model becomes one, so any key can be overridden as usual. It is data of somebody else, so only what
describes the model and its data is taken, after :mod:`xlm.core.hub.allow_list` has agreed.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import yaml
from omegaconf import MISSING

from xlm.core.config.errors import XLMError
from xlm.core.hub.allow_list import check_names, check_objects
from xlm.core.hub.repository import HubModel

FILE = "xlm_config.yaml"
TOKENIZER = "tokenizer*.json"
EXPERIMENT = "pushed_with_the_model"
CHOICES = ("experiment", "recipe", "family", "task", "model", "model_type", "datamodule")
"""Groups; with one of them the user has said what to compose."""
TAKEN = (
    "task", "model", "loss", "loss_metrics", "predictor", "datamodule", "optimizer", "lr_scheduler",
    "monitor", "monitor_mode", "seed",
)  # fmt: skip
"""Keys of a pushed config that are used; the others belong to the machine and the run of its author."""
TAKEN_OF_TRAINER = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
LOCAL = (
    "job_type", "job_name", "output_dir", "ckpt_path", "weights", "allow_pickle", "source", "hub",
    "trust_remote_code", "logger", "vocab",
)  # fmt: skip
"""Keys that are not pushed: they say where and how a run was started, not what it is."""
SAVED = "saved"
"""Argument of a tokenizer that would otherwise be made anew from the data, such as one trained on them: the
folder of the files that were pushed with the model."""
PLACES = ("data_files", SAVED)
"""Keys that may name files of this machine."""
LOCAL_OF_DATA = ("cache_dir", "num_proc")
LARGEST = 2**20
"""Bytes of a config above which it is not read."""


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config as it is pushed: without this machine's settings and places."""
    kept = {key: _without_places(value, key) for key, value in config.items() if key not in LOCAL}
    data = cast("dict[str, Any]", kept.get("datamodule", {}))
    kept["datamodule"] = {key: value for key, value in data.items() if key not in LOCAL_OF_DATA}
    return kept


def _without_places(node: object, key: str) -> Any:
    """``node`` with ``???`` in place of files that are not below the working directory."""
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
        The command line to go on with, and the folder of the experiment; None if nothing was to be done.

    Raises:
        XLMError: When the config cannot be had or is refused.
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
            f"ckpt_path: {model} has no {FILE}: say on the command line what to compose (experiment=NAME)"
        )
    return None


def _use_saved_tokenizer(config: dict[str, Any], ckpt_path: str) -> None:
    """Name the folder of the model's own tokenizer, where it would be made from data that may be others."""
    task = config.get("task")
    tokenizer = cast("dict[str, Any]", task).get("tokenizer") if isinstance(task, dict) else None
    if isinstance(tokenizer, dict) and SAVED in tokenizer:
        model = HubModel.parse(ckpt_path)
        folder = model.fetch((TOKENIZER,)) if model is not None else Path(ckpt_path).expanduser()
        tokenizer[SAVED] = str(folder.absolute())


def _local_settings() -> dict[str, Any]:
    """What the machine decides about data, as every data module of XLM has it."""
    base = Path(__file__).parents[1] / "configs" / "datamodule" / "base.yaml"
    settings = cast("dict[str, Any]", yaml.safe_load(base.read_text("utf-8")))
    return {key: settings[key] for key in LOCAL_OF_DATA}


def read(file: Path, origin: str, *, trusted: bool = False) -> dict[str, Any]:
    """What is used of a pushed config, checked.

    Args:
        file: The file.
        origin: What the user called it, for messages.
        trusted: Whether it may name anything.

    Raises:
        XLMError: When it is no config, or names what is not allowed.
    """
    text = file.read_text(encoding="utf-8") if file.stat().st_size <= LARGEST else ""
    try:
        # An alias repeats a part of the file; a few of them, nested, can fill the memory.
        has_alias = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
        content = None if has_alias else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise XLMError(f"The config of {origin} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise XLMError(f"The config of {origin} is no config: a mapping without aliases, up to 1 MiB")
    config = cast("dict[str, Any]", content)
    taken = {key: config[key] for key in TAKEN if key in config}
    if isinstance(data := taken.get("datamodule"), dict):
        kept = cast("dict[str, Any]", data).items()
        taken["datamodule"] = {key: value for key, value in kept if key not in LOCAL_OF_DATA}
    if isinstance(trainer := config.get("trainer"), dict):
        taken["trainer"] = {key: trainer[key] for key in TAKEN_OF_TRAINER if key in trainer}
    if not trusted:
        check_names(taken, origin)
        check_objects(taken, origin)
    return taken
