"""What a composed config must look like, checked before anything heavy is imported.

Everything that the harness itself reads is described here. Nodes with a ``_target_`` are opaque: their
keys are the constructor arguments of the class they name.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from xlm.core.errors import XLMError

FORMAT_VERSION = 1
"""Version of the config's layout; a config of another version is refused."""

JobType = Literal["prepare_data", "train", "eval", "generate"]
JOB_TYPES: tuple[str, ...] = get_args(JobType)
Stage = Literal["train", "val", "test"]
Use = Literal["loss", "likelihood", "generation"]
Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true"]


def _check_target(node: dict[str, Any]) -> dict[str, Any]:
    target = node.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise ValueError("needs a `_target_`: the dotted path of a class or function")
    return node


Slot = Annotated[dict[str, Any], AfterValidator(_check_target)]
"""A node that Hydra instantiates; any importable class or function fills it."""


class Settings(BaseModel):
    """Base of all checked nodes: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(Settings):
    """A data set with its tokenizer and its metrics of generated text."""

    name: str
    source: Slot
    preprocess: Slot
    tokenizer: Slot
    splits: dict[Stage, str]
    max_target_length: Annotated[int, Field(ge=1)] | None = None
    metrics: dict[str, Slot] = {}


class LoaderSettings(Settings):
    """One named data loader of a stage."""

    split: Stage
    uses: Annotated[list[Use], Field(min_length=1)]
    collator: Slot
    batch_size: Annotated[int, Field(ge=1)]
    num_workers: Annotated[int, Field(ge=0)]
    max_rows: Annotated[int, Field(ge=1)] | None


class DataSettings(Settings):
    """The data loaders of each stage, by name."""

    cache_dir: str
    num_proc: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    train: dict[str, LoaderSettings]
    val: dict[str, LoaderSettings]
    test: dict[str, LoaderSettings]

    @property
    def loaders(self) -> dict[Stage, dict[str, LoaderSettings]]:
        """All loaders by stage and name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @model_validator(mode="after")
    def _training_has_one_loader(self) -> "DataSettings":
        if [loader.uses for loader in self.train.values()] != [["loss"]]:
            raise ValueError("train: needs exactly one loader, with `uses: [loss]`")
        return self


class TrainerSettings(BaseModel):
    """Arguments of ``lightning.Trainer``; those not named here are passed on as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    max_steps: Annotated[int, Field(ge=1)]
    precision: Precision
    accelerator: str
    devices: int | list[int] | str
    num_nodes: Annotated[int, Field(ge=1)]
    strategy: str | Slot
    accumulate_grad_batches: Annotated[int, Field(ge=1)]
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    val_check_interval: Annotated[int, Field(ge=1)] | None
    log_every_n_steps: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _owned_by_the_harness(self) -> "TrainerSettings":
        owned = {"max_epochs", "callbacks", "logger", "default_root_dir", "check_val_every_n_epoch"}
        if found := sorted(owned & set(self.model_extra or {})):
            raise ValueError(
                f"{', '.join(found)}: set by the harness (see trainer.max_steps, callbacks, logger)"
            )
        return self


class RunSettings(Settings):
    """The whole config of a job."""

    format_version: Literal[1]
    job_type: JobType
    job_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    output_dir: str
    ckpt_path: str | None
    compile: bool
    test_after_training: bool
    show_generations: Annotated[int, Field(ge=0)]
    monitor: str
    monitor_mode: Literal["min", "max"]
    vocab: dict[str, int | list[int] | None]
    task: TaskSettings
    model: Slot
    loss: Slot
    loss_metrics: dict[str, Slot]
    predictor: Slot
    datamodule: DataSettings
    optimizer: Slot
    lr_scheduler: Slot
    trainer: TrainerSettings
    callbacks: dict[str, Slot | None]
    logger: dict[str, Slot | None]

    @model_validator(mode="after")
    def _one_generation_needs_a_metric_or_a_reader(self) -> "RunSettings":
        if self.job_type == "generate" and not any(
            "generation" in loader.uses for loader in self.datamodule.test.values()
        ):
            raise ValueError("datamodule.test: job_type=generate needs a loader with `uses: [generation]`")
        return self


def validate(config: Mapping[str, Any]) -> RunSettings:
    """Check a composed config.

    Raises:
        XLMError: Naming every key that is wrong, what was found there and what is allowed.
    """
    try:
        return RunSettings.model_validate(config)
    except ValidationError as error:
        lines = list(_describe(error.errors(), config))
        raise XLMError("\n".join(["The configuration is not valid:", *lines])) from None


def _describe(errors: list[ErrorDetails], config: Mapping[str, Any]) -> Iterator[str]:
    for error in errors:
        key = ".".join(str(part) for part in error["loc"] if _is_key(part, config)) or "(whole config)"
        found = error["input"]
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "missing":
            yield describe_missing(key)
        elif error["type"] == "extra_forbidden":
            yield f"  {key}: unknown key."
        elif isinstance(found, Mapping):
            yield f"  {key}: {message}"
        elif found is None:
            yield describe_missing(key)
        else:
            yield f"  {key}: got {found!r}. {message}."


def _is_key(part: int | str, config: Mapping[str, Any]) -> bool:
    """Whether a part of an error's location is a key, not pydantic's name for a branch of a union."""
    return not (isinstance(part, str) and ("[" in part or part in {"str", "int", "float", "dict"}))


HINTS = {
    "job_name": "Name the run: job_name=my_run (it becomes the folder of the run).",
    "job_type": f"Choose one of {', '.join(JOB_TYPES)}.",
    "task": "Choose an experiment (experiment=NAME) or a data set (task=NAME).",
    "model": "Choose an experiment (experiment=NAME) or a network (model=NAME).",
    "loss": "Choose an experiment (experiment=NAME) or a family (model_type=NAME).",
    "predictor": "Choose an experiment (experiment=NAME) or a family (model_type=NAME).",
    "datamodule": "Choose an experiment (experiment=NAME) or loaders (datamodule=NAME).",
}


def describe_missing(key: str) -> str:
    """One line for a key without a value, with the way to give it one."""
    return f"  {key}: missing. {HINTS.get(key, f'Set it: {key}=VALUE.')}"
