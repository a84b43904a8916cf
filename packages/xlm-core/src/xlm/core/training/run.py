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
from xlm.core.data import LocalCopy
from xlm.core.data.local_copy import is_remote
from xlm.core.data.read_files import FORMATS
from xlm.core.protocols import Tokenizer

LOCAL_SOURCE, LOCAL_FILES = "xlm.core.data.read_local_copy", "xlm.core.data.read_data_files"
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
    source = _plain(filled, "task.source")
    if (local := local_source(source, filled.get("source"))) is not source:
        filled.task.source = local  # first, as the tokenizer may be trained on it
    tokenizer = _make_tokenizer(_plain(filled, "task.tokenizer"))
    _fill_vocabulary(filled, tokenizer)
    values = cast("dict[str, Any]", OmegaConf.to_container(filled, resolve=True))
    settings = validate({key: value for key, value in values.items() if key not in own_keys})
    _check_separators(settings, record)
    return Run(settings, tokenizer, hide(record))


def _plain(config: DictConfig, key: str) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.select(config, key), resolve=True))


def local_source(node: dict[str, Any], source: str | None) -> dict[str, Any]:
    """The node ``task.source``, or one in its place that reads local files.

    With ``source``, a source of the task that has a ``path`` keeps its reader (for a held-out split, for
    example) and receives the new path; every other one is replaced by a reader of files. Without ``source``,
    a ``datasets`` source of local files is replaced.

    Args:
        node: Plain values.
        source: Files or a folder, None for none.

    Raises:
        XLMError: If there are no such files.
    """
    target = node["_target_"]
    if target in (LOCAL_SOURCE, LOCAL_FILES):
        return node
    loads = target == "datasets.load_dataset"
    if source is None:
        if loads and node.get("path") in FORMATS.values() and not is_remote(node.get("data_files")):
            return {**node, "_target_": LOCAL_FILES}
        return node
    path = Path(source).absolute()
    others = {name: value for name, value in node.items() if name not in {"_target_", "_partial_"}}
    arguments = others if loads else {}
    with blamed_on("source", path):
        LocalCopy(path, arguments)  # raises early if the files are wrong
    if not loads and "path" in node:
        return {**node, "path": str(path)}
    return {"_target_": LOCAL_SOURCE, "_partial_": True, "path": str(path), "arguments": arguments}


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
