"""Export of a model to a folder: weights, configs, tokenizer, card."""

import inspect
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import save_torch_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

from xlm.core.config.build import make
from xlm.core.config.console import say
from xlm.core.config.errors import XLMError
from xlm.core.config.format import FORMAT_VERSION
from xlm.core.config.integrity import describe_files
from xlm.core.config.recorded import read_config
from xlm.core.config.run_files import CONFIG as CONFIG_OF_RUN
from xlm.core.config.run_files import METRICS
from xlm.core.config.schema import validate
from xlm.core.config.secrets import hide
from xlm.core.data.sources import LOCAL
from xlm.core.evaluation import report
from xlm.core.hub import source
from xlm.core.hub.allow_list import check_recorded, declaration
from xlm.core.hub.card import CardFacts, make_card
from xlm.core.hub.pushed_config import FILE, portable
from xlm.core.protocols import Tokenizer
from xlm.core.saving.folder import CONFIG, FILES, OWN
from xlm.core.saving.folder import read_config as read_folder_config
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.run import Run

SHARD_SIZE = "5GB"
"""Maximum size of a weights file on the Hub."""
UNSPLIT = "1000TB"
OF_THE_JOB = (
    "job_type", "job_name", "output_dir", "ckpt_path", "weights", "allow_pickle", "trust_remote_code", "hub"
)  # fmt: skip
"""Keys that are read from the composed config even if the run has recorded another value."""
WEIGHTS = {"ema": "moving average", "raw": "as trained"}


def export(run: Run) -> dict[str, float]:
    """Write the weights of a checkpoint as one file, with config, tokenizer and card."""
    folder = write_folder(run, max_shard_size=UNSPLIT)
    report.print_files({path.name: path for path in sorted(folder.iterdir())})
    return {}


def write_folder(run: Run, *, max_shard_size: str = SHARD_SIZE) -> Path:
    """Write a new folder below the run's, without overwriting.

    Args:
        run: The run, with the config of :func:`recorded_config`.
        max_shard_size: Maximum size of a weights file.

    Raises:
        XLMError: If there is no checkpoint, or it does not fit the network.
    """
    settings, run_folder = run.settings, RunFolder(run.folder)
    own = settings.ckpt_path is None
    checkpoint = str(run_folder.best_checkpoint()) if settings.ckpt_path is None else settings.ckpt_path
    model = cast("nn.Module", make(settings.model, "model"))
    source.load(model, checkpoint, which=settings.weights, allow_pickle=settings.allow_pickle)
    about = source.about(checkpoint, which=settings.weights, allow_pickle=settings.allow_pickle)

    job_folder = run_folder.start_job(settings.job_type, run.record)
    weights = WEIGHTS[about.kind]
    report.print_start(settings.job_type, job_folder, {"checkpoint": checkpoint, "weights": weights})
    folder = job_folder / "model"
    folder.mkdir()
    facts = CardFacts(
        title=(settings.hub.repo_id or settings.job_name).rpartition("/")[2],
        origin=settings.hub.repo_id or ".",
        model=model,
        config=hide(settings.model_dump(by_alias=True)),
        package=package_of(model),
        weights=weights,
        step=about.step,
        metrics=_metrics(run_folder) if own else {},
        has_tokenizer=_save_tokenizer(run.tokenizer, folder),
    )
    make_card(facts).save(folder / "README.md")  # first, since the network would write its own card
    _save_model(model, facts.config["model"], folder, max_shard_size)
    _describe(model, about, folder)
    pushed = portable(_with_source(run.record, facts.config), facts.config)
    (folder / FILE).write_text(yaml.safe_dump(pushed, sort_keys=False), "utf-8")
    return folder


def _with_source(record: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the source that was read, if files were read by another than the composed one."""
    node = resolved["task"]["source"]
    replaced = resolved["source"] is not None and LOCAL not in node
    return {**record, "task": {**record["task"], "source": node}} if replaced else dict(record)


def recorded_config(config: DictConfig) -> DictConfig:
    """The config that the run was trained with, else the composed one.

    Paths and options of the job are always those of the composed one.

    Raises:
        XLMError: If the recorded config is invalid, or names classes that are neither allowed nor composed.
    """
    file = Path(config.output_dir, config.job_name, CONFIG_OF_RUN).expanduser()
    if not file.is_file():
        return config
    recorded = read_config(file)
    composed = cast("dict[str, Any]", OmegaConf.to_container(config))
    if not config.trust_remote_code:
        check_recorded(recorded, composed, file)
    config = OmegaConf.create({**recorded, **{key: composed[key] for key in OF_THE_JOB}})
    validate(cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True)))
    return config


def package_of(model: nn.Module) -> str | None:
    """Name and version of the package that declares the network's class, None if no package does."""
    point = declaration(f"{type(model).__module__}.{type(model).__qualname__}")
    if point is None or point.dist is None:
        return None
    return f"{point.dist.name} {version(point.dist.name)}"


def _metrics(run: RunFolder) -> dict[str, float]:
    file = run.path / METRICS
    return cast("dict[str, float]", json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> bool:
    if not hasattr(tokenizer, "save_pretrained"):
        say(
            f"{type(tokenizer).__qualname__} has no save_pretrained: no tokenizer files are written, and "
            "AutoTokenizer will not find one."
        )
        return False
    cast("Any", tokenizer).save_pretrained(folder)
    return True


def _save_model(model: nn.Module, node: dict[str, Any], folder: Path, max_shard_size: str) -> None:
    """Call the network's ``save_pretrained``, or write the same files as huggingface_hub."""
    if hasattr(model, "save_pretrained"):
        saved = cast("Any", model)
        if hasattr(model, "max_shard_size"):
            saved.max_shard_size = max_shard_size
        saved.save_pretrained(folder)
        return
    save_torch_model(model, folder, max_shard_size=max_shard_size)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(type(model)).parameters.items()
        if parameter.default is not parameter.empty
    }
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    try:
        content = json.dumps({**defaults, **arguments}, indent=2)
    except TypeError as error:
        raise XLMError(
            f"model: {type(model).__qualname__} has arguments that {CONFIG} cannot hold ({error}). "
            "Give the class a save_pretrained, for example that of huggingface_hub's PyTorchModelHubMixin"
        ) from error
    (folder / CONFIG).write_text(content + "\n", "utf-8")


def _lasting(folder: Path) -> list[str]:
    """Files that are not edited: weights and those of the tokenizer."""
    edited = (CONFIG, FILE, "README.md")
    return [path.name for path in folder.iterdir() if path.is_file() and path.name not in edited]


def _describe(model: nn.Module, about: source.About, folder: Path) -> None:
    """Add to ``config.json`` the entries beyond the constructor's arguments."""
    name, _, number = (package_of(model) or "").partition(" ")
    entries = {
        "format_version": FORMAT_VERSION,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "package": name or None,
        "version": number or None,
        "weights": about.kind,
        "step": about.step,
        "training_config": FILE,
        FILES: describe_files(folder, _lasting(folder)),
    }
    content = {**hide(read_folder_config(folder)), OWN: entries}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
