"""The job ``doctor``: installed packages, their problems and the remedies."""

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import yaml
from rich.text import Text

from xlm.core.command.discovery import ConfigPackage, config_packages, job_names
from xlm.core.command.job import load_job
from xlm.core.config.console import make_console
from xlm.core.config.errors import XLMError
from xlm.core.saving.versions import package_versions

TOKENS = {
    "Hugging Face": (("HF_TOKEN",), "~/.cache/huggingface/token", "hf auth login"),
    "Weights & Biases": (("WANDB_API_KEY",), "~/.netrc", "wandb login"),
}
CACHES = {"XLM": ("XLM_CACHE", "~/.cache/xlm"), "Hugging Face": ("HF_HOME", "~/.cache/huggingface")}


def main() -> int:
    """Print the report.

    Returns:
        The exit code: 1 if there is a problem, else 0.
    """
    console = make_console()
    for title, lines in (
        ("versions", [f"{name:<20}{version}" for name, version in package_versions().items()]),
        ("devices", devices()),
        ("packages with configs", [describe(package) for package in config_packages()]),
        ("caches", list(caches())),
        ("accounts", list(accounts())),
    ):
        console.print(Text(title, style="bold"))
        for line in lines:
            console.print(f"  {line}")
    wrong = list(problems())
    console.print(Text("problems" if wrong else "no problems", style="bold"))
    for line in wrong:
        console.print(f"  {line}")
    return min(len(wrong), 1)


def devices() -> list[str]:
    """The devices of torch."""
    import torch

    found = [f"cpu                 {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            f"cuda:{index}              {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        )
    if torch.backends.mps.is_available():
        found.append("mps                 Apple")
    return [f"system              {platform.platform()}", *found]


def describe(package: ConfigPackage) -> str:
    """A package in one line."""
    if package.folder is None:
        return f"{package.distribution:<20}no folder {package.dotted}"
    number = sum(1 for _ in package.folder.rglob("*.yaml"))
    return f"{package.distribution:<20}{number:>3} configs in {package.folder}"


def caches() -> Iterator[str]:
    """Folders of prepared data and downloads, and their sizes."""
    for name, (variable, default) in CACHES.items():
        folder = Path(os.environ.get(variable, default)).expanduser()
        size = sum(
            path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
        )
        yield f"{name:<20}{size / 1e6:,.1f} MB in {folder}" + (
            "" if folder.is_dir() else " (does not exist yet)"
        )


def accounts() -> Iterator[str]:
    """Whether a token is set; never the token."""
    for name, (variables, file, login) in TOKENS.items():
        present = any(variable in os.environ for variable in variables) or Path(file).expanduser().is_file()
        yield f"{name:<20}{'token present' if present else f'no token (only needed to upload: {login})'}"


def problems() -> Iterator[str]:
    """All problems, each with its remedy."""
    yield from _namespace()
    yield from _foreign()
    yield from _jobs()
    offered: dict[str, list[str]] = {}
    for package in config_packages():
        yield from _package(package)
        for path in sorted(package.folder.rglob("*.yaml")) if package.folder is not None else ():
            name = str(path.relative_to(package.folder or path).with_suffix(""))
            offered.setdefault(name, []).append(package.distribution)
            yield from _config(path, package.distribution)
    for name, owners in offered.items():
        if len(owners) > 1:
            yield (
                f"{name} is offered by {' and '.join(owners)}: runs that use it are rejected. Rename "
                "the file in one of them, or uninstall one."
            )


def _namespace() -> Iterator[str]:
    spec = find_spec("xlm")
    if spec is not None and spec.origin is not None:
        yield f"{spec.origin} hides every package of XLM but its own: uninstall its package."


def _foreign() -> Iterator[str]:
    for found in distributions():
        if found.name in ("xlm-core", "xlm-models") and not found.version.startswith("1."):
            yield (
                f"{found.name} {found.version} is another project's, of the same name on the public index: "
                f"uv pip uninstall {found.name}, then install it from a clone or from wheels of XLM."
            )


def _package(package: ConfigPackage) -> Iterator[str]:
    if package.folder is None:
        yield (
            f"{package.distribution} declares its configs as {package.dotted}, which is not a folder. "
            f'Reinstall it, or correct [project.entry-points."xlm.configs"] in its pyproject.toml.'
        )
        return
    root = package.dotted.removesuffix(".configs")
    try:
        importlib.import_module(root)
    except Exception as error:  # noqa: BLE001  # an import can raise anything
        yield (
            f"{package.distribution} cannot be imported ({type(error).__name__}: {error}): runs that "
            f"use it fail. `{Path(sys.executable).name} -c 'import {root}'` shows where."
        )


def _jobs() -> Iterator[str]:
    for name in job_names():
        try:
            load_job(name)
        except XLMError as error:
            yield str(error)


def _config(path: Path, owner: str) -> Iterator[str]:
    try:
        yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        yield f"{path} of {owner} is not YAML: {where}. Runs that use it are rejected."
