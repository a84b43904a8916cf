"""Runs the blocks of a Markdown file in a copy of the repository, with small settings.

``xlm`` commands run in this process (a process costs ten seconds of imports), on the CPU, with four steps,
few rows and a small network; all else of a command is as it is written. Other commands run in a shell.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hydra.core.global_hydra import GlobalHydra

from xlm.core.command import cli

from .blocks import ROOT, Block, blocks_of, shell_commands, xlm_arguments
from .composing import composed_for

ALWAYS = (
    "++trainer.accelerator=cpu", "++trainer.devices=1", "++trainer.precision=32-true",
    "++trainer.max_steps=4", "++trainer.val_check_interval=2", "++trainer.log_every_n_steps=1",
    "++callbacks.progress=null",
)  # fmt: skip
SHORT = 10
"""Steps of a command that is short itself."""
ROWS = {"train": 64, "val": 16, "test": 16}
NETWORK = {"d_model": 32, "num_layers": 2, "num_heads": 2}


def copy_of_the_repository(folder: Path) -> Path:
    """A copy of all files that git knows or would add, so that commands may write into it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


def run_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the blocks of a file in the working directory.

    Returns:
        How many blocks were run.

    Raises:
        AssertionError: Naming the block and the command that failed, with what it printed.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    monkeypatch.syspath_prepend(str(Path.cwd()))
    number = 0
    for block in blocks_of(path):
        if block.title is not None:
            target = Path(block.title)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        if not block.runs:
            continue
        number += 1
        if block.language == "python":
            with _failures_name(block, block.text):
                exec(compile(block.text, block.place, "exec"), names)
        else:
            for command in shell_commands(block.text):
                with _failures_name(block, command):
                    run_command(command)
    return number


@contextlib.contextmanager
def _failures_name(block: Block, what: str) -> Generator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{block.place}\n{what}\n{type(error).__name__}: {error}") from error


def run_command(command: str) -> None:
    """Run one command of a shell block.

    Raises:
        AssertionError: When it fails.
    """
    arguments = xlm_arguments(command)
    if arguments is not None:
        run_xlm(arguments)
        return
    words = shlex.split(command, comments=True)
    if "nox" in words:
        check_session(words)
        return
    line = re.sub(r"\b(uv) pip install\b", r"\1 pip install --dry-run", re.sub(r"\buv run\b", "", command))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", line],
        env=environment,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def run_xlm(arguments: list[str]) -> None:
    """Run ``xlm`` in this process.

    Raises:
        AssertionError: When it ends with an error.
    """
    output = io.StringIO()
    GlobalHydra.instance().clear()
    with (
        patch.object(sys, "argv", ["xlm", *arguments, *small(arguments)]),
        contextlib.redirect_stderr(output),
    ):
        try:
            cli.main()
        except SystemExit as error:
            if error.code not in (None, 0):
                raise AssertionError(f"{error.code}\n{output.getvalue()[-3000:]}") from error


def small(arguments: list[str]) -> list[str]:
    """Overrides that make a job short, as far as the keys are there."""
    makes_a_run = any(argument.startswith(("experiment=", "task=")) for argument in arguments)
    # What is in a folder of configs that the reader writes is not known here: such a command is short itself.
    if not makes_a_run or {"--cfg", "--config-dir"} & set(arguments):
        return []
    config = composed_for(arguments)
    network = [f"++model.{key}={value}" for key, value in NETWORK.items() if key in config.model]
    rows = [
        f"++task.source.num_rows.{split}={n}" for split, n in ROWS.items() if "num_rows" in config.task.source
    ]
    debug = [] if any(argument.startswith("debug=") for argument in arguments) else ["debug=fast"]
    # A command that is short itself keeps its number of steps.
    always = [word for word in ALWAYS if "max_steps" not in word or config.trainer.max_steps > SHORT]
    return [*debug, *always, *network, *rows]


def check_session(words: list[str]) -> None:
    """That the sessions named in a call of nox exist; running them is the caller's own work."""
    named = words[words.index("-s") + 1 :] if "-s" in words else []
    command = [
        str(Path(sys.executable).with_name("nox")),
        "-f",
        str(ROOT / "noxfile.py"),
        "--list-sessions",
        "--json",
    ]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in named:
        if name.startswith("-"):
            break
        assert f'"name": "{name}"' in listed, f"there is no session {name}"
