"""Paths of a config, looked at before torch is imported: ``~``, addresses, what is not there."""

import copy
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from xlm.core.config import machine
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import RunSettings

PATHS = ("output_dir", "source", "ckpt_path", "datamodule.cache_dir")
"""Keys of paths. A ``~`` at the beginning is the home folder in each of them."""
HUB = "hf://"


def with_home(config: DictConfig) -> DictConfig:
    """A copy with the home folder in place of a leading ``~``, also for all that refers to a path.

    Raises:
        XLMError: When there is no such home.
    """
    config = copy.deepcopy(config)
    for key in PATHS:
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and value.startswith("~"):
            try:
                OmegaConf.update(config, key, str(Path(value).expanduser()))
            except RuntimeError as error:
                raise XLMError(f"{key}: {value}: {error}") from error
    return config


def check_places(settings: RunSettings, *, reads_checkpoint: bool) -> None:
    """Refuse paths that are addresses, folders that cannot be made, checkpoints that are not there.

    Args:
        settings: The config.
        reads_checkpoint: Whether the job needs one: that of ``ckpt_path``, else the run's own.

    Raises:
        XLMError: Naming the key and what to do.
    """
    for key, value in (
        ("output_dir", settings.output_dir),
        ("datamodule.cache_dir", settings.datamodule.cache_dir),
        ("source", settings.source),
    ):
        if value is not None and "://" in value:
            advice = "a data set of the Hub is a task's (task.source)" if key == "source" else "mount it"
            raise XLMError(f"{key}: {value} is an address; only folders of this machine are used: {advice}")
    run = Path(settings.output_dir, settings.job_name)
    _check_folder("output_dir", run)
    _check_folder("datamodule.cache_dir", Path(settings.datamodule.cache_dir))
    if settings.ckpt_path is not None:
        check_checkpoint(settings.ckpt_path)
    elif reads_checkpoint and not any((run / "checkpoints").glob("*.ckpt")):
        raise no_checkpoint(run)


def _check_folder(key: str, path: Path) -> None:
    """Refuse a folder below a file or with too long a name; nothing is made yet."""
    with machine.blamed_on(key, path):
        for folder in (path, *path.parents):
            if folder.lstat() if folder.is_symlink() else folder.exists():
                if not folder.is_dir():
                    raise XLMError(f"{key}: {folder} is no folder")
                return


def check_checkpoint(ckpt_path: str) -> None:
    """Refuse a ``ckpt_path`` where nothing is. What it holds is read later.

    Raises:
        XLMError: Saying so.
    """
    if ckpt_path.startswith(HUB):
        return
    if "://" in ckpt_path:
        raise XLMError(f"ckpt_path: {ckpt_path} is neither a path of this machine nor {HUB}USER/REPO")
    with machine.blamed_on("ckpt_path", Path(ckpt_path)):
        if not Path(ckpt_path).exists():
            raise XLMError(f"ckpt_path: there is no file {ckpt_path}")


def no_checkpoint(run: Path) -> XLMError:
    """That a run has no checkpoint, and what to do."""
    return XLMError(
        f"The run {run} has no checkpoint in {run / 'checkpoints'}. Train it first "
        "(job_type=train with this job_name), or name a file: ckpt_path=PATH."
    )
