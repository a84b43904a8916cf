"""The resolved config of a run: checked, filled in from the tokenizer, and frozen."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from xlm.core.config.build import make
from xlm.core.config.checks import check_methods
from xlm.core.config.errors import XLMError
from xlm.core.config.machine import blamed_on
from xlm.core.config.places import with_home
from xlm.core.config.schema import RunSettings, validate
from xlm.core.config.secrets import hide
from xlm.core.data.sources import with_local_files
from xlm.core.protocols import Tokenizer

SPECIAL_IDS = ("pad_id", "cls_id", "mask_id", "eos_id", "bos_id", "sep_id", "unk_id")


@dataclass(frozen=True)
class Run:
    """The input of a job.

    Every reference in the settings is resolved. A slot is made from its node, as in
    ``make(run.settings.loss, "loss")``.
    """

    settings: RunSettings
    tokenizer: Tokenizer
    record: Mapping[str, Any]
    """The config as written to ``config.yaml``: as composed, with references, without secrets."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.settings.output_dir, self.settings.job_name)


def resolve(config: DictConfig, own_keys: Collection[str] = ()) -> Run:
    """Make the tokenizer, fill in its ids and the local source, and validate the whole config.

    Args:
        config: A composed config; it is not modified.
        own_keys: Keys that the job adds. They are recorded, but not part of the settings.

    Raises:
        XLMError: If a key is wrong, the tokenizer cannot be made, or local files are missing.
    """
    filled = with_home(config)
    record = cast("dict[str, Any]", OmegaConf.to_container(filled, resolve=False))
    if (source := filled.get("source")) is not None:  # first, as the tokenizer may be trained on these files
        path = Path(source).absolute()
        with blamed_on("source", path):
            filled.task.source = with_local_files(_plain(filled, "task.source"), path)
    tokenizer = _make_tokenizer(_plain(filled, "task.tokenizer"))
    _fill_vocabulary(filled, tokenizer)
    values = cast("dict[str, Any]", OmegaConf.to_container(filled, resolve=True))
    settings = validate({key: value for key, value in values.items() if key not in own_keys})
    _check_separators(settings, record)
    return Run(settings, tokenizer, hide(record))


def _plain(config: DictConfig, key: str) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.select(config, key), resolve=True))


def _make_tokenizer(node: Mapping[str, Any]) -> Tokenizer:
    tokenizer = make(node, "task.tokenizer")
    needed = ("encode", "encode_batch", "decode", "vocab_size", *SPECIAL_IDS)
    check_methods(tokenizer, "task.tokenizer", "Tokenizer", needed)
    return tokenizer


def _fill_vocabulary(config: DictConfig, tokenizer: Tokenizer) -> None:
    ids: dict[str, int | None] = {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
    # The vocabulary is set first, as the separator of packed documents may refer to it.
    config.vocab = {"size": tokenizer.vocab_size, **ids, "special_ids": None}
    separator = OmegaConf.select(config, "task.packing.separator_id")
    never_in_text = {index for name, index in ids.items() if index is not None and name != "unk_id"}
    OmegaConf.update(config, "vocab.special_ids", sorted(never_in_text - {separator}))


def _check_separators(settings: RunSettings, record: Mapping[str, Any]) -> None:
    """Reject packing with a token that the tokenizer lacks."""
    for stage, loaders in settings.datamodule.loaders.items():
        for name, loader in loaders.items():
            if loader.packing is not None and loader.packing.separator_id is None:
                key = f"datamodule.{stage}.{name}.packing"
                node = record["datamodule"][stage][name]["packing"]
                raise XLMError(f"{key}: the tokenizer has no such separator token: {node}")
