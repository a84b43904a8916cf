"""The command ``xlm``. What can be answered at once is answered before Hydra is imported."""

import difflib
import sys
from importlib.metadata import version

from xlm.core.discovery import config_packages, providers
from xlm.core.errors import XLMError

JOBS = {
    "prepare_data": "download or generate the data set, tokenise it, cache it",
    "train": "train, resume a run of the same name, test its best checkpoint",
    "eval": "score a checkpoint: metrics.json and predictions.jsonl",
    "generate": "generate with a checkpoint: predictions.jsonl",
}
GROUPS = {
    "experiment": "everything for a known run: data set, family, network, numbers",
    "task": "a data set with its tokenizer and metrics",
    "model_type": "a family: loss, predictor, metrics of the loss",
    "model": "a network",
    "datamodule": "data loaders and their collators",
    "collator": "how a family noises and pads a batch",
    "optimizer": "", "lr_scheduler": "", "trainer": "", "callbacks": "", "logger": "",
    "debug": "overfit: one batch; fast: a few batches of everything",
}  # fmt: skip
OVERRIDES = {
    "trainer.max_steps=2000": "optimizer steps",
    "trainer.precision=bf16-mixed": "32-true, bf16-mixed, bf16-true, 16-mixed",
    "trainer.devices=2": "processes on this machine",
    "trainer.accumulate_grad_batches=4": "micro-batches for each optimizer step",
    "trainer.val_check_interval=500": "optimizer steps between validations",
    "datamodule.batch_size=128": "rows for each process and micro-batch",
    "optimizer.lr=1e-3": "learning rate",
    "logger=wandb": "instead of TensorBoard and CSV",
    "callbacks=ema": "average the weights",
    "debug=fast": "a few batches of everything",
    "ckpt_path=FILE": "for eval, generate: another checkpoint than the best",
    "seed=1": "another seed",
}


def help_text() -> str:
    """What ``xlm --help`` prints, with everything that is installed."""
    lines = [
        "xlm: train, evaluate and compare non-autoregressive language models",
        "",
        "  xlm job_type=JOB job_name=NAME experiment=EXPERIMENT [KEY=VALUE ...]",
        "",
        "Jobs (job_type=):",
        *(f"  {name:<14}{text}" for name, text in JOBS.items()),
        "",
        "Experiments (experiment=):",
        *_options("experiment"),
        "",
        "Groups (GROUP=OPTION replaces a part of the config):",
        *(_group(name, text) for name, text in GROUPS.items() if name not in ("experiment", "collator")),
        "",
        "Common overrides (any key of the config can be set; +KEY=VALUE adds one):",
        *(f"  {name:<36}{text}" for name, text in OVERRIDES.items()),
        "",
        "  --cfg job       show the composed config and stop",
        "  -m, --multirun  run once for each value: -m seed=1,2,3 'job_name=run_${seed}'",
        "  --version       versions of the installed XLM packages",
        "  HYDRA_FULL_ERROR=1 in the environment shows the stack trace of an error.",
    ]
    return "\n".join(lines)


def _options(group: str) -> list[str]:
    return [
        f"  {option:<28}{' and '.join(package.distribution for package in found)}"
        for option, found in providers(group).items()
    ]


def _group(name: str, text: str) -> str:
    options = ", ".join(option for option in providers(name) if option != "base")
    return f"  {name:<14}{options}" + (f"\n  {'':<14}({text})" if text else "")


def version_text() -> str:
    """What ``xlm --version`` prints."""
    names = sorted({package.distribution for package in config_packages()})
    return "\n".join(f"{name} {version(name)}" for name in names)


def check_choice(key: str, value: str, known: list[str], what: str) -> None:
    """Refuse an unknown name.

    Raises:
        XLMError: Naming the known ones, the most similar first.
    """
    if value in known:
        return
    close = difflib.get_close_matches(value, known, n=3, cutoff=0.5)
    rest = [name for name in known if name not in close]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise XLMError(f"{key}={value}: no such {what}. {hint}Known: {', '.join([*close, *rest])}")


def check_arguments(arguments: list[str]) -> None:
    """Find the commonest mistakes without Hydra: an unknown job or experiment."""
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or "," in value:  # a sweep is Hydra's to split
            continue
        if key == "job_type":
            check_choice(key, value, list(JOBS), "job")
        elif key == "experiment" and value != "null":
            check_choice(key, value, list(providers("experiment")), "experiment")


def main() -> None:
    """Answer, or hand over to Hydra."""
    arguments = sys.argv[1:]
    if not arguments or {"--help", "-h", "help"} & set(arguments):
        print(help_text())  # noqa: T201
        return
    if "--version" in arguments:
        print(version_text())  # noqa: T201
        return
    try:
        check_arguments(arguments)
    except XLMError as error:
        sys.exit(f"Error: {error}")
    from xlm.core import run  # imports Hydra and pydantic

    run.main()
