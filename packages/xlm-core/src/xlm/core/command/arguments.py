"""Checks of the command line that do not need Hydra."""

from itertools import pairwise

from xlm.core.command.discovery import config_packages, is_part, job_names, providers
from xlm.core.config.errors import XLMError
from xlm.core.config.near import did_you_mean, listed

GROUPS = {
    "experiment": "a recipe, a model type and a model, with their settings",
    "recipe": "a data set and its training settings, for every family",
    "task": "a data set with its tokenizer and metrics",
    "model_type": "a family: data loaders, loss, predictor, metrics of the loss",
    "noise": "the noise schedule of a masked family",
    "model": "a network",
    "datamodule": "data loaders and their collators",
    "collator": "how a family adds noise and padding to a batch",
    "optimizer": "", "lr_scheduler": "", "trainer": "", "callbacks": "", "logger": "",
    "debug": "overfit: eight rows; fast: a few batches of each stage",
}  # fmt: skip
SEVERAL = ("callbacks", "logger")
"""Groups of which several options may be chosen."""
FLAGS = (
    "--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--help", "-h",
    "--hydra-help", "--info", "-i", "--multirun", "-m", "--package", "-p", "--resolve", "--run", "-r",
    "--shell-completion", "-sc", "--version", "--experimental-rerun",
)  # fmt: skip
"""Options of Hydra and XLM."""
VALUED = (
    "--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p",
    "--experimental-rerun",
)  # fmt: skip
"""Options with a value in the next word."""
EXPLAINED = "explained"
"""The value of ``--cfg`` that XLM adds."""
SHOWN = ("job", EXPLAINED, "hydra", "all")
"""Values of ``--cfg``."""
BRINGS_CONFIGS = ("--config-dir", "-cd", "--config-path", "-cp", "hydra.searchpath")
"""Prefixes of overrides whose group options only Hydra can list."""


def check_arguments(arguments: list[str]) -> None:
    """Find common mistakes: an unknown job, option or flag, a repeated key.

    Raises:
        XLMError: If there is one; lists the known names.
    """
    _check_flags(arguments)
    _check_given_once(arguments)
    only_packages = not any(word.lstrip("+").startswith(BRINGS_CONFIGS) for word in arguments)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        written, separator, value = argument.partition("=")
        key = written.lstrip("+").partition("@")[0]
        adds = written.startswith("+") and not written.startswith("++")  # ++ replaces what may be there
        if argument in job_names() and before not in VALUED:
            raise XLMError(f"{argument}: neither KEY=VALUE nor an option. Did you mean job_type={argument}?")
        if separator and not key:
            raise XLMError(f"{argument}: neither KEY=VALUE nor an option. xlm --help lists both")
        if not separator or "$" in value:
            continue
        if key == "job_type":
            if not _is_sweep(value):
                check_choice(key, value, job_names(), "job")
        elif key in GROUPS and value in ("null", ""):
            raise XLMError(f"{key}={value}: not an option. To select none: '~{key}'")
        elif adds and value == "null" and key.split(".")[0] in SEVERAL:
            raise XLMError(f"{argument}: there is none of this name to switch off with null")
        elif (options := list(providers(key))) or key in GROUPS:
            _check_options(key, value, options if only_packages else None)


def options_first(arguments: list[str]) -> list[str]:
    """Move the options to the front, since Hydra accepts none between two overrides."""
    options: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        (options if word.startswith("-") else others).append(word)
        if word in VALUED:
            options += [value for value in (next(words, None),) if value is not None]
    return [*options, *others]


def wants_explanation(arguments: list[str]) -> bool:
    """Whether the command line has ``--cfg explained``."""
    pairs = list(zip(arguments, [*arguments[1:], ""], strict=True))
    return f"--cfg={EXPLAINED}" in arguments or any((flag, EXPLAINED) in pairs for flag in ("--cfg", "-c"))


def without_explanation(arguments: list[str]) -> list[str]:
    """The command line without ``--cfg explained``, which Hydra rejects."""
    return [word for word in arguments if word not in ("--cfg", "-c", EXPLAINED, f"--cfg={EXPLAINED}")]


def _check_flags(arguments: list[str]) -> None:
    for word, following in pairwise([*arguments, ""]):
        name, separator, value = word.partition("=")
        value = value if separator else following
        if not word.startswith("-"):
            continue
        if name not in FLAGS:
            raise XLMError(f"{name}: no such option.{did_you_mean(name, FLAGS)} xlm --help lists them.")
        if name in VALUED and not value:
            raise XLMError(f"{name}: has no value. xlm --help lists the options.")
        if name in ("--cfg", "-c") and value not in SHOWN:
            raise XLMError(f"{name} {value}: shows one of {', '.join(SHOWN)}")


def _check_given_once(arguments: list[str]) -> None:
    """Reject a key with two values; ``++KEY=VALUE`` may replace another."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, separator, _ = argument.partition("=")
        if not separator or key.startswith(("++", "~", "-")):
            continue
        before = given.setdefault(key.lstrip("+"), argument)
        if before != argument:
            raise XLMError(
                f"{key.lstrip('+')} is given twice, {before} and {argument}: remove one of them "
                f"(or force it: ++{argument.lstrip('+')})"
            )


def _check_options(group: str, value: str, known: list[str] | None) -> None:
    """Check one option of a group, or ``[several,of,them]``; a sweep over options too."""
    is_list = value.startswith("[") and value.endswith("]")
    names = [name.strip() for name in (value[1:-1] if is_list else value).split(",")]
    if is_list and group in GROUPS and group not in SEVERAL:
        raise XLMError(
            f"{group}={value}: one {what(group)} for a run. To run each of them: -m {group}={value[1:-1]}"
        )
    for name in names:
        if is_list and names.count(name) > 1:
            raise XLMError(f"{group}={value}: {name} occurs twice")
        if known is not None and name and not value.startswith("{"):
            check_choice(group, name, known, what(group), note=missing_folders())


def _is_sweep(value: str) -> bool:
    return "," in value


def what(group: str) -> str:
    """What an option of the group is called."""
    names = {"noise": "noise schedule", "model_type": "model type", "datamodule": "data module"}
    return names.get(group, group if group in GROUPS and group not in SEVERAL else f"option of {group}")


def check_choice(key: str, value: str, known: list[str], what: str, *, note: str = "") -> None:
    """Reject an unknown name.

    Raises:
        XLMError: If the name is unknown; lists the known ones, the most similar first.
    """
    if value in known:
        return
    names = [name for name in known if not is_part(name)]
    raise XLMError(
        f"{key}={value}: no such {what}.{did_you_mean(value, known)}{note}{listed(names, 'Known:')}"
    )


def missing_folders() -> str:
    """A note on packages whose declared config folder is missing."""
    lost = [package for package in config_packages() if package.folder is None]
    return "".join(
        f" (The package {package.distribution} declares configs in {package.dotted}, which does not exist.)"
        for package in lost
    )
