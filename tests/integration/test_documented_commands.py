"""Every ``xlm`` command that the documentation shows composes and is valid. (``nox -s docs`` runs them.)"""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from xlm.core.command.arguments import check_arguments
from xlm.core.command.discovery import job_names

from ..documentation.blocks import ROOT, Block, blocks_of, markdown_files, shell_commands, xlm_arguments
from ..documentation.composing import composed_for

FILES = markdown_files()
SHOWN_AND_DONE = {
    "--help",
    "-h",
    "--version",
    "--completion",
    "job_type=doctor",
    "job_type=compare",
    "job_type=view",
    "--config-dir",
}
MADE_BY_THE_READER = "my_model"
"""What the pages call the package that `xlm-scaffold` makes."""


def commands(path: Path) -> list[tuple[Block, list[str]]]:
    return [
        (block, arguments)
        for block in blocks_of(path)
        if block.language == "bash"
        for command in shell_commands(block.text)
        if (arguments := xlm_arguments(command)) is not None
    ]


def is_the_readers(argument: str, text: str) -> bool:
    """Whether an argument names what the reader chooses (CAPITALS, my_...) or makes himself."""
    key, _, name = argument.partition("=")
    chosen = key in ("experiment", "task", "model", "model_type", "datamodule")
    return re.fullmatch(r"[A-Z_]{2,}", name) is not None or (
        chosen and ("my_" in name or f"/{name}.yaml" in text)
    )


def has_the_config_of_its_weights(arguments: list[str]) -> bool:
    """Whether a command is composed from what was saved beside the weights, in a folder or on the Hub."""
    values = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    weights = values.get("ckpt_path", "")
    return "experiment" not in values and bool(weights) and not weights.endswith(".ckpt")


@pytest.mark.parametrize(
    "path", [path for path in FILES if commands(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_commands_are_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for block, arguments in commands(path):
        if any(argument.endswith(MADE_BY_THE_READER) for argument in arguments):
            continue
        try:
            known = [argument for argument in arguments if not is_the_readers(argument, text)]
            check_arguments(known)
            elsewhere = SHOWN_AND_DONE & set(arguments) or has_the_config_of_its_weights(arguments)
            if not elsewhere and known == arguments:
                composed_for(arguments)
        except Exception as error:
            raise AssertionError(f"{block.place}: xlm {shlex.join(arguments)}\n{error}") from error


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_the_text_are_known(path: Path) -> None:
    """Commands inside a sentence name jobs and experiments that exist; my_... is the reader's."""
    whole = path.read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```", "", whole, flags=re.M | re.S)
    for code in re.findall(r"`([^`\n]+)`", text):
        known = re.findall(r"\b(?:job_type|experiment)=[a-z0-9_]+", code)
        check_arguments([name for name in known if not is_the_readers(name, whole) and name[-1] not in "_="])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_data_in_the_text_can_be_read(path: Path) -> None:
    for block in blocks_of(path):
        if block.language == "yaml":
            assert yaml.safe_load(block.text) is not None, block.place


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_names_in_the_text_exist(path: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    names = re.findall(r"`(xlm(?:\.(?:core|modules|tasks)|_[a-z]+)(?:\.\w+)*)(?:\(.*?\))?`", text)
    names = [name for name in names if "my_" not in name and not name.endswith(".yaml")]
    missing = sorted({name for name in names if not exists(name)})
    assert not missing, f"no such names: {missing}"


def exists(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if attribute not in getattr(found, "__annotations__", {}) and not hasattr(found, attribute):
                return False
            found = getattr(found, attribute, None)
        return True
    return False


def test_tests_named_in_the_text_are_there() -> None:
    places = ("packages/*/tests/**/*.py", "packages/*/src/**/testing/*.py", "tests/**/*.py")
    sources = "".join(path.read_text(encoding="utf-8") for place in places for path in ROOT.glob(place))
    defined = set(re.findall(r"def (test_\w+)", sources))
    named = {name for path in FILES for name in re.findall(r"`(test_\w+)`", path.read_text(encoding="utf-8"))}
    assert named, "the list of traps names none"
    unknown = named - defined - {path.stem for path in ROOT.glob("packages/*/tests/*.py")}
    assert not unknown, f"no such tests: {sorted(unknown)}"


def test_the_scan_finds_the_first_command() -> None:
    found = [arguments for _, arguments in commands(ROOT / "README.md")]
    assert ["job_type=train", "job_name=first", "experiment=star_tiny_ilm"] in found
    assert set(job_names()) >= {"train", "eval"}
