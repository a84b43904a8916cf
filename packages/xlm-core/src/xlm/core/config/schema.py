"""The schema of a composed config, checked before any heavy import.

It covers all keys that the harness itself reads. Nodes with a ``_target_`` are opaque: their keys are the
constructor arguments of the class they name.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from xlm.core.config.entry_points import GENERATION, LOSS, PAGES, USES, offered
from xlm.core.config.names import Name
from xlm.core.config.near import did_you_mean
from xlm.core.config.validation import validated

Stage = Literal["train", "val", "test"]
Column = Literal["prompt_ids", "target_ids", "fixed"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true"]


def _check_target(node: dict[str, Any]) -> dict[str, Any]:
    target = node.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise ValueError("needs a `_target_`: the dotted path of a class or function")
    for flag in ("_partial_", "_recursive_"):
        if not isinstance(value := node.get(flag, False), bool):
            raise ValueError(f"{flag} is {value!r}, not true or false")
    return node


def _check_use(name: str) -> str:
    if name not in offered(USES):
        known = offered(USES)
        hint = did_you_mean(name, known).lstrip()
        raise ValueError(
            f"{hint} Installed packages offer {', '.join(known) or 'none; reinstall xlm-core'}".lstrip()
        )
    return name


def _list_uses(schema: dict[str, Any]) -> None:
    schema["enum"] = list(offered(USES))


Use = Annotated[str, AfterValidator(_check_use), Field(json_schema_extra=_list_uses)]
"""The name of a use of a loader, see ``xlm.core.evaluation.uses``."""
Slot = Annotated[dict[str, Any], AfterValidator(_check_target)]
"""A node that Hydra instantiates; its target is any importable class or function."""
LARGEST_COUNT = 2**31 - 1
"""Maximum of a count: the product of two fits into 64-bit integers."""
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
MOST_ROWS = 2**20
"""Maximum batch size, above the capacity of any device; use micro-batches for more."""
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
MOST_PROCESSES = 1024
"""Maximum number of processes on one machine that read or prepare data."""
LARGEST_SEED = 2**32 - 1
"""Maximum seed of the generators that Lightning seeds."""
Text = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Base of all checked nodes: unknown keys are errors, and true is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LengthLimitSettings(Settings):
    """Handling of rows with a long target; the summary of the preparation counts them."""

    max_length: Count
    """Maximum target length in tokens."""
    longer: Literal["cut", "drop"]
    """cut: truncate longer targets; drop: drop their rows."""


class PackingSettings(Settings):
    """Documents concatenated into blocks of equal length; only the last block of a split may be shorter."""

    block_length: Annotated[int, Field(ge=2, le=LARGEST_COUNT)]
    """Target tokens in a block, separators included, without the family's own special tokens."""
    separator_id: int | None
    """Token after each document, as a reference: ${vocab.eos_id}. Only packing inserts it."""
    keep_apart: bool = False
    """Whether examples have `segment_ids`, for attention inside a document only."""


class TaskSettings(Settings):
    """A data set with its tokenizer and its metrics of generated text."""

    name: Name
    """Name of the data set; its prepared rows are in cache_dir/name."""
    source: Slot
    """Source of raw rows (`xlm.core.protocols.Source`)."""
    filter: Slot | None = None
    """Selects raw rows (`xlm.core.protocols.RowFilter`); null: all."""
    preprocess: Slot
    """Turns a raw row into ids (`xlm.core.protocols.Preprocess`)."""
    tokenizer: Slot
    """Converts text to ids and back (`xlm.core.protocols.Tokenizer`)."""
    splits: dict[Stage, str]
    """Splits of the source for train, val and test, in the syntax of `datasets`: train[:-1000]."""
    length_limit: LengthLimitSettings | None = None
    """Length limit of targets; null: none."""
    packing: PackingSettings | None = None
    """Default packing of language-modelling loaders; null: none."""
    streaming: bool = False
    """Whether to read the training split during training instead of preparing it (val and test are always
    prepared)."""
    max_target_length: Count | None = None
    """Maximum target length in tokens, which is the width of families with a fixed width. null: unknown."""
    metrics: dict[Name, Slot] = {}
    """Metrics of generated texts, by name (`xlm.core.protocols.GenerationMetric`)."""


class LoaderSettings(Settings):
    """One named data loader of a stage."""

    split: Stage
    """Split to read."""
    uses: Annotated[list[Use], Field(min_length=1)]
    """Uses of a batch: loss, likelihood, generation, sampler_likelihood, or several of them."""
    collator: Slot
    """Turns examples into a batch (`xlm.core.protocols.Collator`)."""
    batch_size: Rows
    """Rows per batch, for each process and micro-batch."""
    num_workers: Annotated[int, Field(ge=0, le=MOST_PROCESSES)] = 0
    """Number of worker processes that read and collate; 0: none. Results do not depend on it."""
    max_rows: Count | None = None
    """Number of first examples to use (rows, or packed blocks); null: all. In a stream: rows."""
    columns: list[Column] | None = None
    """Columns of an example, of prompt_ids, target_ids, fixed; null: all of the task. []: only a seed
    (unconditional generation of `max_rows` texts)."""
    packing: PackingSettings | None = None
    """Packing of documents into blocks; null: each row is an example."""
    bucketing: Annotated[int, Field(ge=2, le=LARGEST_COUNT)] | None = None
    """Sort rows by length within windows of this many batches, to reduce padding; null: not at all."""

    @model_validator(mode="after")
    def _combinations(self) -> "LoaderSettings":
        if len(set(self.uses)) < len(self.uses):
            raise ValueError(f"uses is {self.uses}: name each once")
        if self.columns == [] and self.max_rows is None:
            raise ValueError(
                "columns is [] (nothing given): max_rows must be the number of texts to generate"
            )
        if self.packing is not None and self.bucketing is not None:
            raise ValueError("packing and bucketing exclude each other: packed blocks have equal length")
        if self.packing is not None and self.columns not in (None, ["target_ids"]):
            raise ValueError("packing needs the column target_ids alone: set columns or packing to null")
        return self


def loader_defaults() -> dict[str, Any]:
    """The keys of a loader that a config need not write, with their values: those of ``LoaderSettings``."""
    fields = LoaderSettings.model_fields.items()
    own: dict[str, Any] = {name: field.default for name, field in fields if not field.is_required()}
    return {"batch_size": "${datamodule.batch_size}", **own}


class DataSettings(Settings):
    """The data loaders of each stage, by name."""

    cache_dir: Text
    """Folder of prepared data; the environment variable XLM_CACHE changes the default."""
    num_proc: Annotated[int, Field(ge=1, le=MOST_PROCESSES)]
    """Number of processes that prepare the data; the result does not depend on it."""
    shuffle_buffer: Count
    """Size of the shuffle buffer of a stream in rows (task.streaming), held in memory."""
    batch_size: Rows
    """Batch size of all loaders without their own."""
    collator: dict[str, Any] = {}
    """Arguments shared by the collators of all loaders, which refer to them."""
    train: dict[Name, LoaderSettings]
    """The training loader, exactly one."""
    val: dict[Name, LoaderSettings]
    """Loaders of validation, by name."""
    test: dict[Name, LoaderSettings]
    """Loaders of the test after training, of eval and of generate, by name."""

    @property
    def loaders(self) -> dict[Stage, dict[str, LoaderSettings]]:
        """All loaders by stage and name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def only(self, *uses: str) -> "DataSettings":
        """A copy with some uses in test: without loaders that lack them, and without other uses."""
        test = {
            name: loader.model_copy(update={"uses": kept})
            for name, loader in self.test.items()
            if (kept := [use for use in loader.uses if use in uses])
        }
        return self.model_copy(update={"test": test})

    @model_validator(mode="after")
    def _training_has_one_loader(self) -> "DataSettings":
        if [loader.uses for loader in self.train.values()] != [[LOSS]]:
            raise ValueError("train: needs exactly one loader, with `uses: [loss]`")
        for stage, loaders in self.loaders.items():
            if stage != "train" and any(loader.bucketing for loader in loaders.values()):
                raise ValueError(f"{stage}: bucketing is for the training loader only")
        return self


class TrainerSettings(BaseModel):
    """Arguments of ``lightning.Trainer``; others are passed through."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    max_steps: Count
    """Optimizer steps."""
    precision: Precision
    """Precision of the computation and, with -true, of the weights. 16-mixed needs CUDA."""
    accelerator: Text
    """cpu, gpu, mps, or auto."""
    devices: int | list[int] | Text
    """Number of devices (processes) per machine, a list of them, or auto."""
    num_nodes: Count
    """Number of machines."""
    strategy: str | Slot
    """Parallelism: a name of Lightning such as ddp, or a node with a `_target_`."""
    accumulate_grad_batches: Count
    """Micro-batches per optimizer step."""
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    """Maximum gradient norm; null: no clipping."""
    val_check_interval: Count | None
    """Optimizer steps between validations; null: no validation."""
    log_every_n_steps: Count
    """Optimizer steps between logged metrics."""

    @model_validator(mode="after")
    def _owned_by_the_harness(self) -> "TrainerSettings":
        owned = {"max_epochs", "callbacks", "logger", "default_root_dir", "check_val_every_n_epoch"}
        if found := sorted(owned & set(self.model_extra or {})):
            raise ValueError(
                f"{', '.join(found)}: set by the harness (see trainer.max_steps, callbacks, logger)"
            )
        return self


class HubSettings(Settings):
    """Target and options of `job_type=push_to_hub`."""

    repo_id: str | None
    """USER/NAME of the repository, created if it does not exist."""
    private: bool | None
    """Whether a new repository is private; null: the default of its owner."""
    revision: str | None
    """Branch to push to, created if it does not exist; null: main."""
    commit_message: str | None
    """Commit message; null: one with the name of the run."""
    create_pr: bool
    """Whether to open a pull request instead of changing the branch."""
    dry_run: bool
    """Whether to only write the files, without network and token."""

    @model_validator(mode="after")
    def _a_pull_request_goes_to_main(self) -> "HubSettings":
        if self.create_pr and self.revision not in (None, "main"):
            raise ValueError("a pull request goes to main: set hub.create_pr or hub.revision, not both")
        return self


class SamplerLikelihoodSettings(Settings):
    """Options of the use `sampler_likelihood`."""

    num_draws: Count = 1
    """Replays averaged per text, where a sampler has draws that are not of tokens; more tighten the bound."""
    event: Literal["text", "cells"] = "text"
    """What is scored: the text, or also the cells of a masked family behind its end."""
    coupling: Literal["independent", "rotations"] = "independent"
    """Orders of the draws of a masked family that writes single cells in random order: independent, or
    rotations of one order, whose bound is tighter."""


class RunSettings(Settings):
    """The whole config of a job."""

    format_version: Literal[4]
    """Version of the config's layout (`xlm.core.config.format`)."""
    job_type: Text
    """The job: a name that an installed package declares (`xlm --help` lists them)."""
    job_name: Name
    """Name of the run: its folder is output_dir/job_name."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]
    """Seed of data order, noise, initial weights, dropout and sampling."""
    output_dir: Text
    """Folder of all runs."""
    ckpt_path: Text | None
    """Weights to start from: a checkpoint, a folder of safetensors, or `hf://USER/REPO[@REVISION]`; null: in
    train new ones, else those of the run's best checkpoint."""
    from_run: Annotated[str | None, Field(alias="from")] = None
    """Folder of a run whose weights, optimizer, step and position in the data start this training; null:
    none."""
    weights: Literal["auto", "ema", "raw"]
    """Weights of a checkpoint: the moving average, as trained, or the average if there is one."""
    allow_pickle: bool
    """Whether a `ckpt_path` may hold more than tensors and plain values."""
    checkpoint_interval: Count
    """Optimizer steps between two versions of the last checkpoint."""
    trust_remote_code: bool
    """Whether a config from the Hub may name any importable class."""
    hub: HubSettings
    """Pushing to the Hugging Face Hub."""
    compile: bool
    """Whether to run the network through `torch.compile`."""
    test_after_training: bool
    """Whether training ends with the test split on the best checkpoint."""
    show_generations: Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
    """Generated texts that are printed step by step at the end."""
    show_probabilities: bool = False
    """Whether `traces.jsonl` has the probability of each edit, from predictors that record it."""
    trace: bool = False
    """Whether a page replays them, edit by edit (`view.html`, by xlm-eval)."""
    monitor: Text
    """Validation metric that selects the best checkpoint."""
    monitor_mode: Literal["min", "max"]
    """Whether the largest or the smallest value is best."""
    vocab: dict[str, int | list[int] | None]
    """Size and special ids of the tokenizer, filled in before slots are made, which refer to them."""
    task: TaskSettings
    """The data set."""
    source: Text | None = None
    """Local copy of the data set, used instead of task.source: a folder or files."""
    text_column: str | None = None
    """Column of the text in the source, for recipes with such a column."""
    prompt_column: str | None = None
    """Column of the prompt in the source, for recipes with such a column."""
    target_column: str | None = None
    """Column of the completion in the source, for recipes with such a column."""
    model: Slot
    """The network."""
    loss: Slot
    """The training objective (`xlm.core.protocols.Loss`)."""
    noise: Slot | None = None
    """Noise schedule of a masked family, used by its collators and its predictor
    (`xlm.core.protocols.NoiseSchedule`)."""
    loss_metrics: dict[Name, Slot]
    """Metrics of the output of the loss, by name (`xlm.core.protocols.LossMetric`)."""
    predictor: Slot
    """Inference (`xlm.core.protocols.Predictor`)."""
    datamodule: DataSettings
    """The data loaders."""
    sampler_likelihood: SamplerLikelihoodSettings | None = None
    """Options of the use `sampler_likelihood`; null: the defaults."""
    optimizer: Slot
    """Optimizer of the network's parameters, a node with `_partial_: true`."""
    lr_scheduler: Slot
    """Learning-rate schedule (`xlm.core.protocols.LRSchedulerFactory`)."""
    trainer: TrainerSettings
    """Arguments of Lightning's trainer."""
    callbacks: dict[Name, Slot | None]
    """Lightning callbacks by name; null switches one off."""
    logger: dict[Name, Slot | None]
    """Lightning loggers by name; null switches one off."""

    @model_validator(mode="after")
    def _a_page_has_texts(self) -> "RunSettings":
        if not self.trace:
            return self
        if not offered(PAGES):
            raise ValueError(
                "trace: no installed package writes the page. Install xlm-eval, or set trace=false"
            )
        if not self.show_generations:
            raise ValueError(
                "trace: the page shows show_generations texts, which is 0. Set show_generations=3"
            )
        if not self.datamodule.only(GENERATION).test:
            raise ValueError("trace: the page needs a loader of datamodule.test with `uses: [generation]`")
        return self

    @model_validator(mode="after")
    def _files_need_a_name(self) -> "RunSettings":
        node = self.task.source
        is_a_format = node.get("path") in ("text", "json", "csv", "parquet")
        if self.source is None and is_a_format and node.get("data_files", "") is None:
            raise ValueError("source: missing. Set the data: source=FILE, a folder, or a quoted pattern")
        return self


def validate(config: Mapping[str, Any]) -> RunSettings:
    """Check a composed config.

    Raises:
        XLMError: If a key is wrong; names every one, its value and what is allowed.
    """
    return validated(RunSettings, config)
