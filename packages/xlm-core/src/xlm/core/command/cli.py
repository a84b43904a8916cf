"""The command ``xlm``. Help, versions and completion are printed before Hydra is imported."""

import io
import os
import sys
from collections.abc import Iterator
from importlib.metadata import distributions

from xlm.core.command.arguments import (
    GROUPS,
    check_arguments,
    options_first,
    wants_explanation,
    without_explanation,
)
from xlm.core.command.completion import candidates, script
from xlm.core.command.discovery import is_part, job_names, providers, summary
from xlm.core.config.entry_points import JOBS, offered, owner
from xlm.core.config.errors import XLMError
from xlm.core.config.near import WIDTH, columns
from xlm.core.config.secrets import hide_from_console

OVERRIDES = {
    "trainer.max_steps=2000": "optimizer steps",
    "trainer.precision=bf16-mixed": "32-true, bf16-mixed, bf16-true, 16-mixed",
    "trainer.devices=2": "processes on this machine",
    "trainer.accumulate_grad_batches=4": "micro-batches per optimizer step",
    "trainer.val_check_interval=500": "optimizer steps between validations",
    "datamodule.batch_size=128": "rows per process and micro-batch",
    "optimizer.lr=1e-3": "learning rate",
    "logger=wandb": "instead of TensorBoard and CSV",
    "callbacks=ema": "average the weights",
    "debug=fast": "a few batches of each stage",
    "ckpt_path=FILE": "another checkpoint than the best; or hf://USER/REPO[@REVISION]",
    "seed=1": "another seed",
}
OPTIONS = {
    "--cfg job": "print the composed config and exit",
    "--cfg explained": "the same with the meaning, default and file of each key",
    "--config-dir FOLDER": "a folder of your own configs: task/mine.yaml becomes task=mine",
    "-m, --multirun": "run once for each value: -m seed=1,2,3 'job_name=run_${seed}'",
    "--version": "versions of the installed XLM packages",
    "--completion SHELL": 'completion for bash, zsh or fish: eval "$(xlm --completion bash)"',
}
CACHE = "XLM_CACHE"
COLUMN = 16
"""Column of the help in which lists of names start."""
LISTED = ("experiment", "model_type", "task", "collator")
"""Groups that the help lists separately or omits."""


def help_text() -> str:
    """The output of ``xlm --help``, for all installed packages."""
    lines = [
        "xlm: train, evaluate and compare non-autoregressive language models",
        "",
        "  xlm job_type=JOB job_name=NAME experiment=EXPERIMENT [KEY=VALUE ...]",
        "",
        "Jobs (job_type=):",
        *_jobs(),
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


def _jobs() -> Iterator[str]:
    """Each job with its package and its summary."""
    for name in job_names():
        points = offered(JOBS)[name]
        yield f"  {name:<14}{' and '.join(map(owner, points)):<12}{summary(points[0])}"


def _by_package(group: str) -> list[str]:
    """The options of a group by package."""
    found: dict[str, list[str]] = {}
    for option, packages in providers(group).items():
        if not is_part(option):
            found.setdefault(" and ".join(package.distribution for package in packages), []).append(option)
    return [_entry(package, options) for package, options in sorted(found.items())]


def _group(name: str, text: str) -> str:
    entry = _entry(name, [option for option in providers(name) if not is_part(option)])
    return entry + (f"\n{'':<{COLUMN}}({text})" if text else "")


def _entry(name: str, options: list[str]) -> str:
    head = f"  {name} ".ljust(COLUMN)
    rows = columns(options, WIDTH - COLUMN)
    return head + f"\n{'':<{COLUMN}}".join(rows)


def version_text() -> str:
    """The output of ``xlm --version``."""
    found = {dist.name: dist.version for dist in distributions() if dist.name.startswith("xlm-")}
    return "\n".join(f"{name} {found[name]}" for name in sorted(found))


def complete(word: str) -> list[str]:
    """Completions of an unfinished word of the command line."""
    keys = ["job_type=", "job_name=", *(f"{group}=" for group in GROUPS)]
    keys += [f"{override.partition('=')[0]}=" for override in OVERRIDES]
    return candidates(word, [*dict.fromkeys(keys), "--help", "--version", "--cfg"], job_names())


def answer(arguments: list[str]) -> str | None:
    """The immediate output of a command line, None if there is a job to run.

    Raises:
        XLMError: If the shell is unknown.
    """
    if arguments[:1] == ["--complete"]:
        return "\n".join(complete(arguments[1] if len(arguments) > 1 else ""))
    if arguments[:1] == ["--completion"]:
        return script(arguments[1] if len(arguments) > 1 else "").rstrip()
    if not arguments or {"--help", "-h", "help"} & set(arguments):
        return help_text()
    return version_text() if "--version" in arguments else None


def chosen_jobs(arguments: list[str]) -> list[str]:
    """Names of the jobs of the command line; several in a sweep."""
    given = [word.partition("=")[2] for word in arguments if word.lstrip("+").startswith("job_type=")]
    return [name for value in given for name in value.split(",") if name in offered(JOBS)]


def show(text: str) -> None:
    """Print; a closed pipe, as in ``xlm --help | head``, is not an error."""
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        # Buffered output would raise again at the exit of Python.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def settle_environment() -> None:
    """Replace characters that the terminal cannot encode by ``?``; ignore an empty XLM_CACHE."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not os.environ.get(CACHE, "/"):
        del os.environ[CACHE]


def main() -> None:
    """Run the command ``xlm``; a training handles signals itself."""
    settle_environment()
    hide_from_console()
    try:
        _execute(sys.argv[1:])
    except KeyboardInterrupt:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print("\ninterrupted (HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _execute(arguments: list[str]) -> None:
    try:
        if (text := answer(arguments)) is not None:
            show(text)
            return
        check_arguments(arguments)
        # For classes in the user's own files; at the end, so that they cannot hide installed packages.
        sys.path.append(os.getcwd())  # noqa: PTH109
        from xlm.core.command.job import Tool, add_own_keys, load_job, read_tool  # imports pydantic

        for name in chosen_jobs(arguments):
            job = load_job(name)
            if issubclass(job, Tool):
                sys.exit(read_tool(name, job, arguments).run())
            arguments = add_own_keys(job, arguments)
    except XLMError as error:
        sys.exit(f"Error: {error}")
    from xlm.core.command import compose as run  # imports Hydra

    explained = wants_explanation(arguments)
    sys.argv[1:] = options_first(without_explanation(arguments) if explained else arguments)
    run.main(run.explain if explained else run.run_job)
