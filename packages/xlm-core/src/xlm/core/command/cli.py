"""The command ``xlm``. What can be answered at once is answered before Hydra is imported."""

import difflib
import os
import sys
import textwrap
from importlib.metadata import distributions

from xlm.core.command.completion import candidates, script
from xlm.core.command.discovery import config_packages, providers
from xlm.core.config.errors import XLMError
from xlm.core.config.secrets import hide_from_console

JOBS = {
    "prepare_data": "download or generate the data set, tokenise it, cache it",
    "train": "train, resume a run of the same name, test its best checkpoint",
    "eval": "score a checkpoint: metrics.json and predictions.jsonl",
    "generate": "generate with a checkpoint: predictions.jsonl",
    "export": "write a checkpoint's weights, config, tokenizer and card as a folder to share",
    "push_to_hub": "the same, pushed to the Hugging Face Hub: hub.repo_id=USER/NAME",
}
TOOLS = {
    "compare": "one table over runs and seeds: 'runs=[runs/a_s*,runs/b]'",
    "doctor": "what is installed, what is wrong with it, how to mend it",
}
GROUPS = {
    "experiment": "a recipe and a family, with what is particular to the pair",
    "recipe": "a data set and the numbers of a training on it, the same for every family",
    "family": "a family with a network; recipe=RECIPE family=FAMILY is an experiment of your own",
    "task": "a data set with its tokenizer and metrics",
    "model_type": "a family: loss, predictor, metrics of the loss",
    "noise": "the noise schedule of a masked family",
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
    "ckpt_path=FILE": "another checkpoint than the best; or hf://USER/REPO[@REVISION]",
    "seed=1": "another seed",
}
OPTIONS = {
    "--cfg job": "show the composed config and stop",
    "--config-dir FOLDER": "a folder of configs of your own: task/mine.yaml becomes task=mine",
    "-m, --multirun": "run once for each value: -m seed=1,2,3 'job_name=run_${seed}'",
    "--version": "versions of the installed XLM packages",
    "--completion SHELL": 'completion for bash, zsh or fish: eval "$(xlm --completion bash)"',
}
COLUMN, WIDTH = 16, 100
"""Of the help: where lists of names begin, and where they are broken."""
SINGLE = {
    **{name: name for name in ("experiment", "recipe", "family", "task")},
    "noise": "noise schedule",
    "model_type": "model type", "model": "model", "datamodule": "data module",
}  # fmt: skip
"""Groups of which one option is chosen, which is checked before Hydra is imported, and what an option is."""
LISTED = ("experiment", "model_type", "task", "collator")
"""Groups that the help lists on their own, or not at all."""


def help_text() -> str:
    """What ``xlm --help`` prints, with everything that is installed."""
    lines = [
        "xlm: train, evaluate and compare non-autoregressive language models",
        "",
        "  xlm job_type=JOB job_name=NAME experiment=EXPERIMENT [KEY=VALUE ...]",
        "",
        "Jobs (job_type=):",
        *(f"  {name:<14}{text}" for name, text in (JOBS | TOOLS).items()),
        "",
        "Models (model_type=):",
        *_by_package("model_type"),
        "",
        "Tasks (task=):",
        *_by_package("task"),
        "",
        "Experiments (experiment=), called TASK_FAMILY:",
        *_by_package("experiment"),
        "",
        "Groups (GROUP=OPTION replaces a part of the config):",
        *(_group(name, text) for name, text in GROUPS.items() if name not in LISTED),
        "",
        "Common overrides (any key of the config can be set; +KEY=VALUE adds one):",
        *(f"  {name:<36}{text}" for name, text in OVERRIDES.items()),
        "",
        "Options:",
        *(f"  {name:<21}{text}" for name, text in OPTIONS.items()),
        "",
        "HYDRA_FULL_ERROR=1 in the environment shows the stack trace of an error.",
    ]
    return "\n".join(lines)


def _by_package(group: str) -> list[str]:
    """What each package brings to a group."""
    found: dict[str, list[str]] = {}
    for option, packages in providers(group).items():
        if not _is_part(option):
            found.setdefault(" and ".join(package.distribution for package in packages), []).append(option)
    return [_entry(package, options) for package, options in sorted(found.items())]


def _group(name: str, text: str) -> str:
    entry = _entry(name, [option for option in providers(name) if not _is_part(option)])
    return entry + (f"\n{'':<{COLUMN}}({text})" if text else "")


def _is_part(option: str) -> bool:
    """Whether a config is only what others have in common."""
    return option == "base" or option.endswith("_base")


def _entry(name: str, options: list[str]) -> str:
    head = f"  {name} ".ljust(COLUMN)
    return textwrap.fill(
        head + ", ".join(options), WIDTH, subsequent_indent=" " * COLUMN, break_on_hyphens=False
    )


def version_text() -> str:
    """What ``xlm --version`` prints."""
    found = {dist.name: dist.version for dist in distributions() if dist.name.startswith("xlm-")}
    return "\n".join(f"{name} {found[name]}" for name in sorted(found))


def complete(word: str) -> list[str]:
    """What an unfinished word of the command line may become."""
    keys = ["job_type=", "job_name=", *(f"{group}=" for group in GROUPS)]
    keys += [f"{override.partition('=')[0]}=" for override in OVERRIDES]
    return candidates(word, [*dict.fromkeys(keys), "--help", "--version", "--cfg"], [*JOBS, *TOOLS])


def missing_folders() -> str:
    """A sentence about packages whose configs are not where they say."""
    lost = [package for package in config_packages() if package.folder is None]
    return "".join(
        f" (The package {package.distribution} declares configs in {package.dotted}, which is not there.)"
        for package in lost
    )


def check_choice(key: str, value: str, known: list[str], what: str, *, note: str = "") -> None:
    """Refuse an unknown name.

    Raises:
        XLMError: Naming the known ones, the most similar first.
    """
    if value in known:
        return
    close = difflib.get_close_matches(value, known, n=3, cutoff=0.5)
    rest = [name for name in known if name not in close and not _is_part(name)]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise XLMError(f"{key}={value}: no such {what}. {hint}Known: {', '.join([*close, *rest])}{note}")


def check_arguments(arguments: list[str]) -> None:
    """Find the commonest mistakes without Hydra: an unknown job, experiment or option.

    Raises:
        XLMError: Naming what is known.
    """
    # A folder of the user's own may offer experiments too; then only Hydra knows them all.
    only_packages = not any(
        word.startswith(("--config-dir", "-cd", "hydra.searchpath")) for word in arguments
    )
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or "," in value:  # a sweep is Hydra's to split
            continue
        if key == "job_type":
            check_choice(key, value, [*JOBS, *TOOLS], "job")
        elif key in GROUPS and value in ("null", ""):
            raise XLMError(f"{key}={value}: no option. To choose none: '~{key}'")
        elif key in SINGLE and only_packages:
            check_choice(key, value, list(providers(key)), SINGLE[key], note=missing_folders())


def answer(arguments: list[str]) -> str | None:
    """What can be said at once, None for what is to be run.

    Raises:
        XLMError: For a shell that is not known.
    """
    if arguments[:1] == ["--complete"]:
        return "\n".join(complete(arguments[1] if len(arguments) > 1 else ""))
    if arguments[:1] == ["--completion"]:
        return script(arguments[1] if len(arguments) > 1 else "").rstrip()
    if not arguments or {"--help", "-h", "help"} & set(arguments):
        return help_text()
    return version_text() if "--version" in arguments else None


def run_tool(arguments: list[str]) -> bool:
    """Run a job that is about other runs or the installation, and so has no config.

    Returns:
        Whether there was one to run.
    """
    if "job_type=doctor" in arguments:
        from xlm.core.command import doctor

        sys.exit(doctor.main())
    if "job_type=compare" in arguments:
        from xlm.core.command import compare

        compare.main(arguments)
        return True
    return False


def show(text: str) -> None:
    """Print; a reader that has enough, as in ``xlm --help | head``, is no error."""
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        # What is still buffered would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Answer, or hand over to Hydra."""
    hide_from_console()
    arguments = sys.argv[1:]
    try:
        if (text := answer(arguments)) is not None:
            show(text)
            return
        check_arguments(arguments)
        # The user's own files can fill slots. At the end: they cannot hide what is installed.
        sys.path.append(os.getcwd())  # noqa: PTH109
        if run_tool(arguments):
            return
    except XLMError as error:
        sys.exit(f"Error: {error}")
    from xlm.core.command import compose as run  # imports Hydra and pydantic

    run.main()
