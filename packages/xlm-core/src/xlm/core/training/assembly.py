"""From a composed config to made objects, in one fixed order: tokenizer, vocabulary, then every slot."""

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from xlm.core.config.build import make, make_all
from xlm.core.config.checks import check_methods
from xlm.core.config.errors import XLMError
from xlm.core.config.machine import blamed_on
from xlm.core.config.schema import LoaderSettings, RunSettings, Stage
from xlm.core.data import DataModule, LocalCopy, PreparedTask, Stream, TaskParts, open_stream, prepare
from xlm.core.data.local_copy import is_remote
from xlm.core.data.read_files import FORMATS
from xlm.core.evaluation.slots import Slots
from xlm.core.evaluation.uses import needs_examples
from xlm.core.protocols import Tokenizer

LOCAL_SOURCE, LOCAL_FILES = "xlm.core.data.read_local_copy", "xlm.core.data.read_data_files"
SPECIAL_IDS = ("pad_id", "cls_id", "mask_id", "eos_id", "bos_id", "sep_id", "unk_id")


def use_local_files(config: DictConfig) -> None:
    """Let everything that reads ``task.source`` read local files as they stand (`xlm.core.data.read_files`).

    With ``source`` these are the files that it names: a source of the task's own that has a ``path`` keeps
    its way of reading (a held-out split, say) and gets another path; everything else is replaced by a reader
    of files. Without, it is a source that gives ``datasets`` local files of a format.

    Raises:
        XLMError: When there are no such files.
    """
    node = cast("dict[str, Any]", OmegaConf.to_container(config.task.source, resolve=True))
    target = node["_target_"]
    if target in (LOCAL_SOURCE, LOCAL_FILES):
        return
    loads = target == "datasets.load_dataset"
    if config.source is None:
        if loads and node.get("path") in FORMATS.values() and not is_remote(node.get("data_files")):
            config.task.source._target_ = LOCAL_FILES
        return
    path = Path(config.source).absolute()
    others = {name: value for name, value in node.items() if name not in {"_target_", "_partial_"}}
    arguments = others if loads else {}
    with blamed_on("source", path):
        LocalCopy(path, arguments)  # says at once what is wrong with the files
    if not loads and "path" in node:
        config.task.source.path = str(path)
        return
    config.task.source = {
        "_target_": LOCAL_SOURCE,
        "_partial_": True,
        "path": str(path),
        "arguments": arguments,
    }


def make_tokenizer(config: DictConfig) -> Tokenizer:
    """Make the tokenizer and fill the node ``vocab`` from it, so that slots can refer to its ids."""
    use_local_files(config)
    tokenizer = make(config, "task.tokenizer")
    check_methods(
        tokenizer,
        "task.tokenizer",
        "Tokenizer",
        ("encode", "encode_batch", "decode", "vocab_size", *SPECIAL_IDS),
    )
    ids: dict[str, int | None] = {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
    # The vocabulary is set first, as the separator of packed documents may refer to it.
    config.vocab = {"size": tokenizer.vocab_size, **ids, "special_ids": None}
    separator = OmegaConf.select(config, "task.packing.separator_id")
    never_in_text = {index for name, index in ids.items() if index is not None and name != "unk_id"}
    OmegaConf.update(config, "vocab.special_ids", sorted(never_in_text - {separator}))
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


def make_parts(config: DictConfig, settings: RunSettings, tokenizer: Tokenizer) -> TaskParts:
    """Make the slots of the task that give rows."""
    return TaskParts(
        source=make(config, "task.source"),
        row_filter=make(config, "task.filter") if settings.task.filter is not None else None,
        preprocess=make(config, "task.preprocess"),
        tokenizer=tokenizer,
        local_copy=Path(settings.source) if settings.source is not None else None,
    )


def make_prepared(settings: RunSettings, parts: TaskParts) -> PreparedTask:
    """Prepare the task's rows, or find them in the cache."""
    cache_dir = Path(settings.datamodule.cache_dir)
    with blamed_on("datamodule.cache_dir", cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    tests_only = settings.job_type in ("eval", "generate")
    return prepare(
        settings.task,
        parts,
        cache_dir=cache_dir,
        num_proc=settings.datamodule.num_proc,
        used={loader.split for loader in settings.datamodule.test.values()} if tests_only else None,
    )


def make_datamodule(
    config: DictConfig, settings: RunSettings, parts: TaskParts, prepared: PreparedTask
) -> DataModule:
    """Make the data module with the collator of each loader."""
    loaders: dict[Stage, dict[str, LoaderSettings]] = {
        stage: {name: _with_separator(config, f"datamodule.{stage}.{name}", s) for name, s in named.items()}
        for stage, named in settings.datamodule.loaders.items()
    }

    def stream(**arguments: Any) -> Stream:
        rows = open_stream(
            settings.task,
            parts,
            max_rows=arguments["settings"].max_rows,
            buffer_size=settings.datamodule.shuffle_buffer,
            seed=settings.seed,
            rank=arguments["rank"],
            world_size=arguments["world_size"],
        )
        return Stream(rows=rows, encoder=parts.encoder(settings.task), seed=settings.seed, **arguments)

    return DataModule(
        prepared=prepared,
        loaders=loaders,
        collators={
            stage: {name: make(config, f"datamodule.{stage}.{name}.collator") for name in loaders[stage]}
            for stage in loaders
        },
        seed=settings.seed,
        num_batches=settings.trainer.max_steps * settings.trainer.accumulate_grad_batches,
        open_stream=stream if settings.task.streaming else None,
        with_examples={
            stage: [name for name, loader in named.items() if needs_examples(loader.uses)]
            for stage, named in loaders.items()
        },
    )


def _with_separator(config: DictConfig, key: str, settings: LoaderSettings) -> LoaderSettings:
    """Settings with the id of the separator, which is known once the tokenizer is made."""
    if settings.packing is None:
        return settings
    separator_id = OmegaConf.select(config, f"{key}.packing.separator_id")
    if separator_id is None:
        node = OmegaConf.to_container(OmegaConf.select(config, f"{key}.packing"), resolve=False)
        raise XLMError(f"{key}.packing: the tokenizer has no such token to stand between documents: {node}")
    packing = settings.packing.model_copy(update={"separator_id": separator_id})
    return settings.model_copy(update={"packing": packing})
