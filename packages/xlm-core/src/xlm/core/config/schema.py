"""What a composed config must look like, checked before anything heavy is imported.

Everything that the harness itself reads is described here. Nodes with a ``_target_`` are opaque: their
keys are the constructor arguments of the class they name.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from xlm.core.config.entry_points import LOSS, USES, offered
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
            f"{hint} Installed packages offer {', '.join(known) or 'none; install xlm-core anew'}".lstrip()
        )
    return name


def _list_uses(schema: dict[str, Any]) -> None:
    schema["enum"] = list(offered(USES))


Use = Annotated[str, AfterValidator(_check_use), Field(json_schema_extra=_list_uses)]
"""The name of what is done with a batch, see `xlm.core.evaluation.uses`."""
Slot = Annotated[dict[str, Any], AfterValidator(_check_target)]
"""A node that Hydra instantiates; any importable class or function fills it."""
LARGEST_COUNT = 2**31 - 1
"""The product of two counts fits into torch's 64-bit integers."""
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
MOST_ROWS = 2**20
"""Rows of a batch: no device takes more of them at once; more in a step are micro-batches."""
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
MOST_PROCESSES = 1024
"""Of one machine, to read and to prepare data."""
LARGEST_SEED = 2**32 - 1
"""Of the generators that Lightning seeds."""
Text = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Base of all checked nodes: unknown keys are mistakes, and true is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LengthLimitSettings(Settings):
    """What happens to rows with a long target; the summary of the preparation counts them."""

    max_length: Count
    """Most tokens of a target."""
    longer: Literal["cut", "drop"]
    """Longer targets lose their end (cut), or the whole row is left out (drop)."""


class PackingSettings(Settings):
    """Documents joined into blocks of one length; only the last block of a split may be shorter."""

    block_length: Annotated[int, Field(ge=2, le=LARGEST_COUNT)]
    """Target tokens in a block, separators included; the family's own special tokens come on top."""
    separator_id: int | None
    """Token after each document, as a reference: ${vocab.eos_id}. It is placed here and nowhere else."""
    keep_apart: bool = False
    """Whether examples tell the documents apart (`segment_ids`), for attention inside a document only."""


class TaskSettings(Settings):
    """A data set with its tokenizer and its metrics of generated text."""

    name: Name
    """Name of the data set; its prepared rows lie in cache_dir/name."""
    source: Slot
    """Where raw rows come from (`xlm.core.protocols.Source`)."""
    filter: Slot | None = None
    """Which raw rows to keep (`xlm.core.protocols.RowFilter`); null: all."""
    preprocess: Slot
    """Turns a raw row into ids (`xlm.core.protocols.Preprocess`)."""
    tokenizer: Slot
    """Text to ids and back (`xlm.core.protocols.Tokenizer`)."""
    splits: dict[Stage, str]
    """Which split of the source serves as train, val and test, in the syntax of `datasets`: train[:-1000]."""
    length_limit: LengthLimitSettings | None = None
    """Limit of the target's length; null: none, no token is cut."""
    packing: PackingSettings | None = None
    """How language-modelling loaders pack the documents, unless a loader says otherwise; null: not at all."""
    streaming: bool = False
    """Whether training reads from the source as it goes instead of preparing the split (val and test are
    prepared in any case)."""
    max_target_length: Count | None = None
    """Longest target in tokens; families with a fixed width take it as that width. null: not known."""
    metrics: dict[Name, Slot] = {}
    """Scores of generated texts, by name (`xlm.core.protocols.GenerationMetric`)."""


class LoaderSettings(Settings):
    """One named data loader of a stage."""

    split: Stage
    """Split of the data that is read."""
    uses: Annotated[list[Use], Field(min_length=1)]
    """What is done with a batch: loss, likelihood, generation, or several of them, each once."""
    collator: Slot
    """Makes a batch of examples (`xlm.core.protocols.Collator`)."""
    batch_size: Rows
    """Rows of a batch, for each process and micro-batch."""
    num_workers: Annotated[int, Field(ge=0, le=MOST_PROCESSES)] = 0
    """Processes that read and collate ahead; 0: none. Results do not depend on it."""
    max_rows: Count | None = None
    """Only the first examples of the split (rows, or blocks where packed); null: all. In a stream: rows."""
    columns: list[Column] | None = None
    """What an example carries of prompt_ids, target_ids, fixed; null: all that the task has. []: nothing but
    a seed (unconditional generation of `max_rows` texts)."""
    packing: PackingSettings | None = None
    """How documents are packed into blocks; null: each row is an example."""
    bucketing: Annotated[int, Field(ge=2, le=LARGEST_COUNT)] | None = None
    """Batches whose rows are sorted by length among one another, so that less is padded; null: none."""

    @model_validator(mode="after")
    def _combinations(self) -> "LoaderSettings":
        if len(set(self.uses)) < len(self.uses):
            raise ValueError(f"uses is {self.uses}: name each once")
        if self.columns == [] and self.max_rows is None:
            raise ValueError("columns is [] (nothing given): max_rows must say how many texts to generate")
        if self.packing is not None and self.bucketing is not None:
            raise ValueError("packing and bucketing exclude one another: packed blocks have one length")
        if self.packing is not None and self.columns not in (None, ["target_ids"]):
            raise ValueError("packing needs the column target_ids alone: set columns or packing to null")
        return self


class DataSettings(Settings):
    """The data loaders of each stage, by name."""

    cache_dir: Text
    """Folder of prepared data; the environment variable XLM_CACHE changes the default."""
    num_proc: Annotated[int, Field(ge=1, le=MOST_PROCESSES)]
    """Processes that prepare the data; the result does not depend on it."""
    shuffle_buffer: Count
    """Rows among which a stream is shuffled (task.streaming); they are held in memory."""
    batch_size: Rows
    """Batch size of every loader that has none of its own."""
    collator: dict[str, Any] = {}
    """Arguments that the collators of all loaders share; those refer to them here."""
    train: dict[Name, LoaderSettings]
    """The one loader of training."""
    val: dict[Name, LoaderSettings]
    """Loaders of validation, by name."""
    test: dict[Name, LoaderSettings]
    """Loaders of the test after training, of eval and of generate, by name."""

    @property
    def loaders(self) -> dict[Stage, dict[str, LoaderSettings]]:
        """All loaders by stage and name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def only(self, use: str) -> "DataSettings":
        """The same with one use in the test: loaders without it are left out, other uses too."""
        test = {
            name: loader.model_copy(update={"uses": [use]})
            for name, loader in self.test.items()
            if use in loader.uses
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
    """Arguments of ``lightning.Trainer``; those not named here are passed on as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    max_steps: Count
    """Optimizer steps."""
    precision: Precision
    """Number format of the computation and, with -true, of the weights. 16-mixed needs CUDA."""
    accelerator: Text
    """cpu, gpu, mps, or auto."""
    devices: int | list[int] | Text
    """Number of devices (processes) on each machine, a list of them, or auto."""
    num_nodes: Count
    """Machines."""
    strategy: str | Slot
    """How processes share the work: a name known to Lightning such as ddp, or a node with a `_target_`."""
    accumulate_grad_batches: Count
    """Micro-batches for each optimizer step."""
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    """Largest norm of the gradient; null: no clipping."""
    val_check_interval: Count | None
    """Optimizer steps between validations; null: no validation."""
    log_every_n_steps: Count
    """Optimizer steps between logged figures."""

    @model_validator(mode="after")
    def _owned_by_the_harness(self) -> "TrainerSettings":
        owned = {"max_epochs", "callbacks", "logger", "default_root_dir", "check_val_every_n_epoch"}
        if found := sorted(owned & set(self.model_extra or {})):
            raise ValueError(
                f"{', '.join(found)}: set by the harness (see trainer.max_steps, callbacks, logger)"
            )
        return self


class HubSettings(Settings):
    """Where `job_type=push_to_hub` pushes to, and how."""

    repo_id: str | None
    """USER/NAME of the repository; it is made if it is not there."""
    private: bool | None
    """Whether a new repository is private; null: the default of its owner."""
    revision: str | None
    """Branch to push to, made if it is not there; null: main."""
    commit_message: str | None
    """Message of the commit; null: one that names the run."""
    create_pr: bool
    """Whether to open a pull request instead of changing the branch."""
    dry_run: bool
    """Whether to write the files only; needs no network and no token."""

    @model_validator(mode="after")
    def _a_pull_request_goes_to_main(self) -> "HubSettings":
        if self.create_pr and self.revision not in (None, "main"):
            raise ValueError("a pull request goes to main: set hub.create_pr or hub.revision, not both")
        return self


class RunSettings(Settings):
    """The whole config of a job."""

    format_version: Literal[2]
    """Version of the config's layout (`xlm.core.config.format`)."""
    job_type: Text
    """What to do: the name of a job that an installed package brings (`xlm --help` lists them)."""
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
    """Folder of a run that this training goes on from, with its optimizer, step and place in the data; null:
    none."""
    weights: Literal["auto", "ema", "raw"]
    """Weights of a checkpoint: the moving average, as trained, or the average where there is one."""
    allow_pickle: bool
    """Whether a `ckpt_path` may hold more than tensors and plain values."""
    checkpoint_interval: Count
    """Optimizer steps between two writings of the last checkpoint."""
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
    monitor: Text
    """Figure of validation that decides which checkpoint is the best."""
    monitor_mode: Literal["min", "max"]
    """Whether the largest or the smallest is the best."""
    vocab: dict[str, int | list[int] | None]
    """Size and special ids of the tokenizer, filled in before slots are made; slots refer to it."""
    task: TaskSettings
    """The data set."""
    source: Text | None = None
    """Local copy of the data set that is used instead of task.source: a folder or files."""
    text_column: str | None = None
    """Column of the source with the text, in a recipe that has such a column."""
    prompt_column: str | None = None
    """Column of the source with what is given, in a recipe that has such a column."""
    target_column: str | None = None
    """Column of the source with what is to be generated, in a recipe that has such a column."""
    model: Slot
    """The network."""
    loss: Slot
    """The training objective (`xlm.core.protocols.Loss`)."""
    noise: Slot | None = None
    """Noise schedule of a masked family, which its collators and its predictor refer to
    (`xlm.core.protocols.NoiseSchedule`)."""
    loss_metrics: dict[Name, Slot]
    """Figures of the loss's own output, by name (`xlm.core.protocols.LossMetric`)."""
    predictor: Slot
    """Inference (`xlm.core.protocols.Predictor`)."""
    datamodule: DataSettings
    """The data loaders."""
    optimizer: Slot
    """Optimizer of the network's parameters, a node with `_partial_: true`."""
    lr_scheduler: Slot
    """Learning rate over the steps (`xlm.core.protocols.LRSchedulerFactory`)."""
    trainer: TrainerSettings
    """Arguments of Lightning's trainer."""
    callbacks: dict[Name, Slot | None]
    """Lightning callbacks by name; null switches one off."""
    logger: dict[Name, Slot | None]
    """Lightning loggers by name; null switches one off."""

    @model_validator(mode="after")
    def _files_need_a_name(self) -> "RunSettings":
        node = self.task.source
        is_a_format = node.get("path") in ("text", "json", "csv", "parquet")
        if self.source is None and is_a_format and node.get("data_files", "") is None:
            raise ValueError("source: missing. Name the data: source=FILE, a folder, or a quoted pattern")
        return self


def validate(config: Mapping[str, Any]) -> RunSettings:
    """Check a composed config.

    Raises:
        XLMError: Naming every key that is wrong, what was found there and what is allowed.
    """
    return validated(RunSettings, config)
