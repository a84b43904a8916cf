"""Checks of the paths in a config before torch is imported: ``~``, URLs, missing files."""

import copy
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from xlm.core.config import machine
from xlm.core.config.errors import XLMError
from xlm.core.config.run_files import CHECKPOINTS
from xlm.core.config.schema import RunSettings

PATHS = ("output_dir", "source", "ckpt_path", "datamodule.cache_dir")
"""Keys of paths. A leading ``~`` in them is the home folder."""
HUB = "hf://"


def with_home(config: DictConfig) -> DictConfig:
    """Copy a config with a leading ``~`` of paths replaced by the home folder, also in references to them.

    Raises:
        XLMError: If there is no such home folder.
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
    """Reject URLs, folders that cannot be created, and missing checkpoints.

    Args:
        settings: The config.
        reads_checkpoint: Whether the job needs a checkpoint: that of ``ckpt_path``, else the run's own.

    Raises:
        XLMError: If a path is unusable; names the key and the remedy.
    """
    for key, value in (
        ("output_dir", settings.output_dir),
        ("datamodule.cache_dir", settings.datamodule.cache_dir),
        ("source", settings.source),
    ):
        if value is not None and "://" in value:
            advice = "a data set of the Hub is a task's (task.source)" if key == "source" else "mount it"
            raise XLMError(f"{key}: {value} is a URL; only local folders are used: {advice}")
    run = Path(settings.output_dir, settings.job_name)
    _check_folder("output_dir", run)
    _check_folder("datamodule.cache_dir", Path(settings.datamodule.cache_dir))
    if settings.ckpt_path is not None:
        check_checkpoint(settings.ckpt_path)
    elif reads_checkpoint and not any((run / CHECKPOINTS).glob("*.ckpt")):
        raise no_checkpoint(run)


def _check_folder(key: str, path: Path) -> None:
    """Reject a folder below a file or with too long a name; creates nothing."""
    with machine.blamed_on(key, path):
        for folder in (path, *path.parents):
            if folder.lstat() if folder.is_symlink() else folder.exists():
                if not folder.is_dir():
                    raise XLMError(f"{key}: {folder} is not a folder")
                return


def check_checkpoint(ckpt_path: str) -> None:
    """Reject a missing ``ckpt_path``. Its content is read later.

    Raises:
        XLMError: If it does not exist.
    """
    if ckpt_path.startswith(HUB):
        return
    if "://" in ckpt_path:
        raise XLMError(f"ckpt_path: {ckpt_path} is neither a local path nor {HUB}USER/REPO")
    with machine.blamed_on("ckpt_path", Path(ckpt_path)):
        if not Path(ckpt_path).exists():
            raise XLMError(f"ckpt_path: there is no file {ckpt_path}")


def no_checkpoint(run: Path) -> XLMError:
    """The message for a run without a checkpoint."""
    return XLMError(
        f"The run {run} has no checkpoint in {run / 'checkpoints'}. Train it first "
        "(job_type=train with this job_name), or set a file: ckpt_path=PATH."
    )
