"""A folder that holds everything to use a model elsewhere: weights, configs, tokenizer, card."""

import inspect
import json
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
from xlm.core.config.integrity import describe_files
from xlm.core.config.schema import FORMAT_VERSION, RunSettings
from xlm.core.config.secrets import hide
from xlm.core.config.texts import read_yaml
from xlm.core.evaluation import report
from xlm.core.hub import source
from xlm.core.hub.allow_list import check_recorded, declaration
from xlm.core.hub.card import CardFacts, make_card
from xlm.core.hub.pushed_config import FILE, portable
from xlm.core.protocols import Tokenizer
from xlm.core.saving.folder import CONFIG, FILES, OWN, read_config
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.assembly import make_tokenizer

SHARD_SIZE = "5GB"
"""Size of a file of weights from which on they are split for the Hub."""
UNSPLIT = "1000TB"
WEIGHTS = {"ema": "moving average", "raw": "as trained"}


def export(config: DictConfig, settings: RunSettings) -> dict[str, float]:
    """Write the weights of a checkpoint as one file, with everything that belongs to them."""
    folder = write_folder(config, settings, max_shard_size=UNSPLIT)
    report.print_files({path.name: path for path in sorted(folder.iterdir())})
    return {}


def write_folder(config: DictConfig, settings: RunSettings, *, max_shard_size: str = SHARD_SIZE) -> Path:
    """Write a new folder below the run's; nothing there is overwritten.

    Args:
        config: The composed config. The one that the run has recorded comes before it.
        settings: The same, checked.
        max_shard_size: Size from which on the weights are split.

    Raises:
        XLMError: When there is no checkpoint, or it does not fit the network.
    """
    run = RunFolder(Path(settings.output_dir, settings.job_name))
    own = settings.ckpt_path is None
    checkpoint = str(run.best_checkpoint()) if settings.ckpt_path is None else settings.ckpt_path
    config = _training_config(config, run, trusted=settings.trust_remote_code)
    tokenizer = make_tokenizer(config)
    model = cast("nn.Module", make(config, "model"))
    source.load(model, checkpoint, which=settings.weights, allow_pickle=settings.allow_pickle)
    about = source.about(checkpoint, which=settings.weights, allow_pickle=settings.allow_pickle)

    job_folder = run.start_job(settings.job_type, plain(config))
    weights = WEIGHTS[about.kind]
    report.print_start(settings.job_type, job_folder, {"checkpoint": checkpoint, "weights": weights})
    folder = job_folder / "model"
    folder.mkdir()
    facts = CardFacts(
        title=(settings.hub.repo_id or settings.job_name).rpartition("/")[2],
        origin=settings.hub.repo_id or ".",
        model=model,
        config=plain(config, resolve=True),
        package=package_of(model),
        weights=weights,
        step=about.step,
        metrics=_metrics(run) if own else {},
        has_tokenizer=_save_tokenizer(tokenizer, folder),
    )
    make_card(facts).save(folder / "README.md")  # first: the network would write a card of its own
    _save_model(model, facts.config["model"], folder, max_shard_size)
    _describe(model, about, folder)
    (folder / FILE).write_text(
        yaml.safe_dump(portable(plain(config), facts.config), sort_keys=False), "utf-8"
    )
    return folder


def _training_config(config: DictConfig, run: RunFolder, *, trusted: bool) -> DictConfig:
    """The config that the run was trained with, else the composed one."""
    file = run.path / "config.yaml"
    if not file.is_file():
        return config
    recorded = read_yaml(file, str(file))
    if not isinstance(recorded, dict):
        raise XLMError(f"{file} is no config: it holds no mapping of keys to values")
    content = cast("dict[str, Any]", recorded)
    if not trusted:
        check_recorded(content, cast("dict[str, Any]", OmegaConf.to_container(config)), file)
    return OmegaConf.create(content)


def plain(config: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """A config as plain values, without secrets."""
    return hide(cast("dict[str, Any]", OmegaConf.to_container(config, resolve=resolve)))


def package_of(model: nn.Module) -> str | None:
    """Name and version of the package that declares the network's class, None if no package does."""
    point = declaration(f"{type(model).__module__}.{type(model).__qualname__}")
    if point is None or point.dist is None:
        return None
    return f"{point.dist.name} {version(point.dist.name)}"


def _metrics(run: RunFolder) -> dict[str, float]:
    file = run.path / "metrics.json"
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
    """Let the network save itself, or write what huggingface_hub would."""
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
    """Files that nobody edits: weights and what the tokenizer has saved."""
    edited = (CONFIG, FILE, "README.md")
    return [path.name for path in folder.iterdir() if path.is_file() and path.name not in edited]


def _describe(model: nn.Module, about: source.About, folder: Path) -> None:
    """Add to ``config.json`` what the arguments of the constructor do not say."""
    name, _, number = (package_of(model) or "").partition(" ")
    told = {
        "format_version": FORMAT_VERSION,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "package": name or None,
        "version": number or None,
        "weights": about.kind,
        "step": about.step,
        "training_config": FILE,
        FILES: describe_files(folder, _lasting(folder)),
    }
    content = {**hide(read_config(folder)), OWN: told}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
