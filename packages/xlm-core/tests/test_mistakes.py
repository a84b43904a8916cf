"""Every mistake of a command line, and every fault of the machine, ends in one message."""

import copy
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from xlm.core.command.arguments import check_arguments
from xlm.core.command.compose import check
from xlm.core.config.errors import XLMError
from xlm.core.config.machine import explained
from xlm.core.config.places import check_places
from xlm.core.training import assembly
from xlm.core.training.run import resolve
from xlm.core.training.trainer import make_trainer

from . import toy_jobs
from .conftest import Run

LONG = "n" * 300
MISTAKES = {
    # numbers that are none, or out of the range of what takes them
    "seed=9223372036854775807": "seed: got 9223372036854775807.*4294967295",
    "seed=-1": "seed: got -1",
    "seed=true": "seed: got True",
    "seed=1.5": "seed: got 1.5",
    "trainer.max_steps=true": "trainer.max_steps: got True",
    "trainer.max_steps=100000000000000000000000": "trainer.max_steps: got 1000000.*2147483647",
    "trainer.max_steps=1e5": "trainer.max_steps: got 100000.0.*Write it without a point or an exponent",
    "trainer.max_steps=null": "trainer.max_steps: missing",
    "trainer.gradient_clip_val=nan": "trainer.gradient_clip_val: got nan.*finite",
    "trainer.devices=true": "trainer.devices: got True",
    "datamodule.batch_size=1000000000": "datamodule.batch_size, .*got 1000000000.*1048576",
    "datamodule.num_proc=100000": "datamodule.num_proc: got 100000",
    "show_generations=10000000000": "show_generations: got 10000000000",
    "optimizer.lr=nan": "optimizer.lr: got nan",
    "optimizer.lr=inf": "optimizer.lr: got inf; it must be finite",
    "optimizer.lr=-1": "optimizer: could not make .*Invalid learning rate: -1",
    "optimizer.lr=abc": "optimizer.lr: got 'abc'. .* takes",
    "optimizer.lr=null": "optimizer.lr: got None",
    "optimizer.lr=[1]": "optimizer.lr: got .1.",
    "optimizer.lr=true": "optimizer.lr: got True",
    "optimizer.betas=[2,3]": "optimizer: could not make .*Invalid beta",
    "optimizer.betas=[0.9]": "optimizer.betas: got .0.9..",
    "optimizer.betas=x": "optimizer.betas: got 'x'",
    "optimizer.weight_decay=-1": "optimizer: could not make .*weight.decay",
    "optimizer.weight_decay=true": "optimizer.weight_decay: got True",
    "optimizer.eps=x": "optimizer.eps: got 'x'",
    "optimizer._partial_=x": "optimizer: _partial_ is 'x', not true or false",
    "optimizer._partial_=false": "optimizer: could not make ",
    "lr_scheduler.warmup=nan": "lr_scheduler.warmup: got nan",
    "lr_scheduler.warmup=inf": "lr_scheduler: could not make .*warmup is inf",
    "lr_scheduler.warmup=-1": "lr_scheduler: could not make .*warmup is -1",
    "lr_scheduler.warmup=x": "lr_scheduler.warmup: got 'x'",
    "lr_scheduler.name=nope": "lr_scheduler: could not make WarmupSchedule.*nope is not a valid",
    "model.vocab_size=x": "model.vocab_size: got 'x'. toy_family.ToyModel takes int",
    "model.vocab_size=-1": "model: could not make toy_family.ToyModel",
    "+datamodule.train.lm.collator.nope=1": "datamodule.train.lm.collator: could not make .*not nope",
    "+model.dropout=2": "model: could not make toy_family.ToyModel.*dropout",
    "+model.dropout=nan": "model.dropout: got nan",
    "+callbacks.learning_rate.logging_interval=3": "callbacks.learning_rate.logging_interval: got 3",
    # objects of the wrong kind
    "callbacks.validation_report._target_=os.getcwd": "os.getcwd made str, not a Lightning Callback",
    "+callbacks.x._target_=builtins.print": "callbacks.x: builtins.print made NoneType",
    "+callbacks.x={}": "callbacks.x: needs a `_target_`",
    "+logger.x._target_=os.getcwd": "logger.x: os.getcwd made str, not a Lightning Logger",
    "optimizer._target_=torch.nn.Linear": "optimizer: could not make",
    "~optimizer": "optimizer: missing",
    # settings of the trainer
    "+trainer.detect_anomaly=x": "trainer.detect_anomaly: got 'x'. lightning.Trainer takes bool",
    "+trainer.limit_train_batches=-1": "trainer: Lightning rejects these settings.*limit_train_batches",
    "+trainer.benchmak=true": "trainer.benchmak: .*no such argument. Did you mean benchmark",
    "+trainer.max_epochs=3": "max_epochs: set by the harness",
    "trainer.precision=16-mixed": "trainer.precision: 16-mixed needs a GPU.*bf16-mixed",
    "trainer.precision=16-true": "trainer.precision: 16-true needs a GPU",
    # what is filled in, left out, or unknown
    "vocab.size=3": "vocab: size: filled in from the tokenizer",
    "monitor=''": "monitor: got ''",
    "~datamodule.val": "datamodule.val: missing",
    "+trainr.x=1": "trainr: unknown key. Did you mean trainer",
    "+task.lenght_limit=3": "task.lenght_limit: unknown key. Did you mean length_limit",
    "+optimizer.lrr=3": "optimizer: .*not lrr. Did you mean lr",
    "job_name=2024": "job_name: got 2024.*'job_name=\"2024\"'",
    "job_name=true": "job_name: got True.*'job_name=\"true\"'",
    f"job_name={LONG}": "job_name: got 'nnn",
    # places
    "output_dir=''": "output_dir: got ''",
    "output_dir=/dev/null": "output_dir: /dev/null is not a folder",
    "output_dir=hf://x": "output_dir: hf://x is a URL",
    "output_dir=s3://x": "output_dir: s3://x is a URL",
    f"output_dir=/tmp/{LONG}": "output_dir: /tmp/nnn.*the path is too long",
    "datamodule.cache_dir=''": "datamodule.cache_dir: got ''",
    "datamodule.cache_dir=/dev/null": "datamodule.cache_dir: /dev/null is not a folder",
    "datamodule.cache_dir=s3://x": "datamodule.cache_dir: s3://x is a URL",
    "source=''": "source: got ''",
    "source=s3://x": "source: s3://x is a URL",
    "source=/nope": "source=/nope: there are no files",
    "ckpt_path=/nope": "ckpt_path: there is no file /nope",
    "ckpt_path=gs://x": "ckpt_path: gs://x is neither",
    "job_type=eval": "has no checkpoint in .*Train it first",
    "job_type=generate": "has no checkpoint in",
    "job_type=export": "has no checkpoint in",
    "job_type=push_to_hub hub.dry_run=true": "has no checkpoint in",
    "job_type=push_to_hub": "hub.repo_id: missing",
    # words
    "experiment=[a_ilm,a_mlm]": "one experiment for a run",
    "experiment=a experiment=b": "experiment is given twice",
    "job_type=train job_type=eval": "job_type is given twice",
    "seed=1 seed=2": "seed is given twice, seed=1 and seed=2",
    "seed=1 +seed=2": "seed is given twice",
    "callbacks=[ema,ema]": "ema occurs twice",
    "callbacks=[sample]": "callbacks=sample: no such option of callbacks. Did you mean samples",
    "optimizer=adam": "no such optimizer. Did you mean adamw",
    "-m callbacks=ema,nope": "callbacks=nope: no such option of callbacks",
    "+callbacks.nope=null": "none of this name to switch off with null",
    "job_type=trane": "no such job. Did you mean train",
    "model=null": "To select none: '~model'",
    "--confg-dir x": "--confg-dir: no such option. Did you mean --config-dir",
    "--config-dir": "--config-dir: has no value",
    "--cfg jbo": "--cfg jbo: shows one of job, explained",
    "=3": "neither KEY=VALUE nor an option",
}  # fmt: skip


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    return toy_jobs.composed(tmp_path_factory.mktemp("mistakes"), "job_type=train")


def overridden(config: DictConfig, words: list[str]) -> DictConfig:
    """A copy with overrides of keys, as Hydra applies them."""
    config = copy.deepcopy(config)
    overrides = [word for word in words if not word.startswith("-") and word != "x"]
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if override.is_delete():
            above, _, name = key.rpartition(".")
            with open_dict(config):
                del (OmegaConf.select(config, above) if above else config)[name]
        else:
            OmegaConf.update(config, key, override.value(), force_add=override.is_add())
    return config


class DataIsReadError(Exception):
    pass


def begin(config: DictConfig, words: list[str]) -> None:
    """What a training does with its command line before it reads data."""
    check_arguments(words)
    config = overridden(config, words)
    job, checked = check(config)
    check_places(checked, reads_checkpoint=job.reads_checkpoint)
    run = resolve(config)
    make_trainer(run, Path(run.settings.output_dir))
    with patch.object(assembly, "make_prepared", side_effect=DataIsReadError), suppress(DataIsReadError):
        assembly.assemble(run)


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_message_that_names_its_key(command: str, composed: DictConfig) -> None:
    with pytest.raises(XLMError) as caught:
        begin(composed, command.split())
    message = str(caught.value)
    assert re.search(MISTAKES[command], message, re.DOTALL), message
    assert "\n\n" not in message
    assert "Traceback" not in message


def test_what_is_right_passes(composed: DictConfig) -> None:
    begin(
        composed,
        [
            "optimizer.lr=1",
            "optimizer.betas=[0.5,0.9]",
            "+trainer.benchmark=true",
            "logger.csv=null",
            "++seed=3",
        ],
    )


def no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device", "/some/last.ckpt")


def broken_pipe() -> None:
    try:
        raise BrokenPipeError(32, "Broken pipe")
    except BrokenPipeError as error:
        raise RuntimeError("the loop ended") from error


def no_memory() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")


def no_place() -> None:
    Path("/proc/nope").mkdir()


FAULTS: dict[Callable[[], object], tuple[str, int]] = {
    no_space: ("/some/last.ckpt: the disk is full. Free some space", 1),
    broken_pipe: ("output pipe is closed", 141),
    no_memory: ("the memory is used up.*datamodule.batch_size.*accumulate_grad_batches", 1),
    no_place: ("/proc/nope: it does not exist", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_machine_says_what_to_do(fault: Callable[[], object]) -> None:
    message, code = FAULTS[fault]
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the test checks its message
        fault()
    error = explained(caught.value)
    assert error is not None
    assert re.search(message, str(error))
    assert error.exit_code == code


def test_a_fault_of_the_program_is_none_of_the_machine() -> None:
    assert explained(KeyError("x")) is None
    assert explained(RuntimeError("shape mismatch")) is None


def accident(kind: str) -> str:
    return f"+callbacks.accident={{_target_: toy_accidents.FaultAt, batch: 3, kind: {kind}}}"


def fault_of(run_toy: Run, *overrides: str) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the test checks its message
        run_toy("job_type=train", "checkpoint_interval=2", *overrides)
    message = explained(caught.value)
    assert message is not None
    assert message.exit_code == 1
    assert "\n" not in str(message)
    return str(message)


def test_no_memory_in_a_step(run_toy: Run, tmp_path: Path) -> None:
    assert "Fewer rows at once" in fault_of(run_toy, accident("memory"))
    assert (tmp_path / "runs/toy/checkpoints/last.ckpt").exists()
    assert run_toy("job_type=train", "checkpoint_interval=2")["test/prediction/exact_match"] == 1.0


# TensorBoard's own thread ends by the same error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_folder_is_deleted(run_toy: Run) -> None:
    message = fault_of(run_toy, accident("deleted"))
    assert "does not exist. Was it moved or deleted?" in message


def test_a_folder_that_cannot_be_written(run_toy: Run) -> None:
    message = fault_of(run_toy, "output_dir=/sys/kernel")  # of the system, hence also for an administrator
    assert message.startswith("/sys/kernel/toy: ")
    assert "Choose writable folders: output_dir=FOLDER" in message
