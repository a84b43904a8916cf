"""From a composed config to made objects, in one fixed order: tokenizer, vocabulary, then every slot."""

from pathlib import Path
from typing import Any

import hydra.errors
import hydra.utils
from omegaconf import DictConfig, OmegaConf

from xlm.core.checks import check_methods
from xlm.core.data import DataModule, PreparedTask, prepare
from xlm.core.errors import XLMError
from xlm.core.harness import Slots
from xlm.core.protocols import Tokenizer
from xlm.core.schema import RunSettings

SPECIAL_IDS = ("pad_id", "cls_id", "mask_id", "eos_id", "bos_id", "sep_id", "unk_id")


def make(config: DictConfig, key: str) -> Any:
    """Make the object of the node at ``key``.

    Raises:
        XLMError: When the class cannot be imported or does not take these arguments; names key and class.
    """
    node = OmegaConf.select(config, key)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__ or error
        reason = (
            str(cause)
            if isinstance(cause, hydra.errors.HydraException)
            else f"{type(cause).__name__}: {cause}"
        )
        raise XLMError(f"{key}: could not make {node['_target_']}.\n  {reason}") from error


def make_all(config: DictConfig, key: str) -> dict[str, Any]:
    """Make every object below ``key`` that is not switched off with null."""
    nodes = OmegaConf.select(config, key)
    return {name: make(config, f"{key}.{name}") for name in nodes if nodes[name] is not None}


def make_tokenizer(config: DictConfig) -> Tokenizer:
    """Make the tokenizer and fill the node ``vocab`` from it, so that slots can refer to its ids."""
    tokenizer = make(config, "task.tokenizer")
    check_methods(
        tokenizer,
        "task.tokenizer",
        "Tokenizer",
        ("encode", "encode_batch", "decode", "vocab_size", *SPECIAL_IDS),
    )
    ids: dict[str, int | None] = {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
    never_in_text = {index for name, index in ids.items() if index is not None and name != "unk_id"}
    config.vocab = {"size": tokenizer.vocab_size, "special_ids": sorted(never_in_text), **ids}
    return tokenizer


def make_slots(config: DictConfig, tokenizer: Tokenizer) -> Slots:
    """Make every slot of the harness."""
    slots = Slots(
        tokenizer=tokenizer,
        model=make(config, "model"),
        loss=make(config, "loss"),
        predictor=make(config, "predictor"),
        optimizer=make(config, "optimizer"),
        lr_scheduler=make(config, "lr_scheduler"),
        loss_metrics=make_all(config, "loss_metrics"),
        generation_metrics=make_all(config, "task.metrics"),
    )
    for key, metrics in {
        "loss_metrics": slots.loss_metrics,
        "task.metrics": slots.generation_metrics,
    }.items():
        for name, metric in metrics.items():
            check_methods(metric, f"{key}.{name}", "Metric", ("sums", "reset", "update", "compute"))
    return slots


def make_prepared(config: DictConfig, settings: RunSettings, tokenizer: Tokenizer) -> PreparedTask:
    """Prepare the task's rows, or find them in the cache."""
    return prepare(
        settings.task,
        source=make(config, "task.source"),
        preprocess=make(config, "task.preprocess"),
        tokenizer=tokenizer,
        cache_dir=Path(settings.datamodule.cache_dir).expanduser(),
        num_proc=settings.datamodule.num_proc,
    )


def make_datamodule(config: DictConfig, settings: RunSettings, prepared: PreparedTask) -> DataModule:
    """Make the data module with the collator of each loader."""
    loaders = settings.datamodule.loaders
    return DataModule(
        prepared=prepared,
        loaders=loaders,
        collators={
            stage: {name: make(config, f"datamodule.{stage}.{name}.collator") for name in loaders[stage]}
            for stage in loaders
        },
        seed=settings.seed,
        num_batches=settings.trainer.max_steps * settings.trainer.accumulate_grad_batches,
    )
