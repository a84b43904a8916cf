"""Hydra composes, pydantic checks, a job runs. Torch is imported only after the checks."""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xlm.core.command import composition
from xlm.core.command.discovery import config_packages, job_names, providers
from xlm.core.command.explain import explanation
from xlm.core.command.job import Job, load_job, own_values
from xlm.core.config import machine
from xlm.core.config.errors import XLMError
from xlm.core.config.places import check_places, with_home
from xlm.core.config.schema import RunSettings, loader_defaults, validate
from xlm.core.config.secrets import hide_file
from xlm.core.config.validation import describe_missing, validated

CORE_CONFIGS = Path(__file__).parents[1] / "configs"
SWEEP = "multirun.yaml"
"""The file in which Hydra writes a sweep with its overrides."""
FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable: 1 shows the stack trace of every error."""


class PackageConfigs(SearchPathPlugin):
    """Adds the config folder of every installed package to Hydra's search path, as a file path."""

    pushed: Path | None = None
    """Folder with the config of a model in ``ckpt_path``, see :mod:`xlm.core.hub.pushed_config`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders; that of the core is Hydra's primary source."""
        if self.pushed is not None:
            search_path.append(provider="hub", path=f"file://{self.pushed}")
        for package in config_packages():
            if package.folder is not None and package.folder != CORE_CONFIGS:
                search_path.append(provider=package.distribution, path=f"file://{package.folder}")


def register_search_path() -> None:
    """Register the packages' configs with Hydra (also for ``hydra.compose`` in notebooks and tests).

    The defaults of a loader come from its schema, as the option ``loader=defaults``.
    """
    ConfigStore.instance().store("defaults", loader_defaults(), group="loader", provider="xlm-core")
    plugins = Plugins.instance()
    if PackageConfigs not in plugins.discover(SearchPathPlugin):
        plugins.register(PackageConfigs)


def run_job(config: DictConfig) -> dict[str, float]:
    """Check a composed config, resolve it, and run its job, on the command line and in notebooks.

    Returns:
        The job's metrics.

    Raises:
        XLMError: If the config has mistakes; lists every one found, most of them before torch is imported.
    """
    job, checked = check(config)
    check_places(checked, reads_checkpoint=job.reads_checkpoint)
    machine.tell_of_threads()
    let_waiting_threads_sleep()
    from xlm.core.training.compiling import explain_compiler  # the first import of torch and lightning
    from xlm.core.training.run import resolve
    from xlm.core.training.trainer import begin_process

    begin_process(config.seed)
    run = resolve(job.choose_config(config), own_keys=type(job).model_fields)
    settings = run.settings
    with explain_compiler(settings.model["_target_"]) if settings.compile else nullcontext():
        return job.run(run)


def check(config: DictConfig) -> tuple[Job, RunSettings]:
    """Check a composed config as far as possible without the tokenizer, and the origin of its parts.

    Returns:
        The job with its own keys, and the other settings without the tokenizer's values.

    Raises:
        XLMError: If the config has mistakes; lists every one found.
    """
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    for group_and_package, option in choices.items():
        check_origin(str(group_and_package).split("@")[0], str(option))
    raw = OmegaConf.to_container(config, resolve=False)
    _check_complete(raw)
    if config.get("noise") is not None and not refers_to("noise", raw):
        raise XLMError(
            f"noise: {config.noise.get('_target_')} is unused: no slot refers to ${{noise}}. "
            "Remove it; only families of masked diffusion have a noise schedule"
        )
    if mistakes := list(_unshared(cast("dict[str, Any]", raw))):
        raise XLMError("\n".join(["One loader's collator differs from the others:", *mistakes]))
    try:
        plain = OmegaConf.to_container(with_home(config), resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise XLMError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    values = cast("dict[str, Any]", plain)
    if given := [name for name, value in values["vocab"].items() if value is not None]:
        raise XLMError(
            f"vocab: {', '.join(given)}: filled in from the tokenizer. Change task.tokenizer instead"
        )
    job_class = load_job(str(values["job_type"]))
    if not issubclass(job_class, Job):
        raise XLMError(f"job_type={values['job_type']}: it has no config; set it on the command line")
    job = validated(job_class, own_values(job_class, values))
    settings = validate({key: value for key, value in values.items() if key not in job_class.model_fields})
    job.check(settings)
    return job, settings


def check_origin(group: str, option: str) -> None:
    """Reject an option that several packages offer.

    Raises:
        XLMError: If there are several packages; names them.
    """
    found = providers(group).get(option, [])
    if len(found) > 1:
        names = " and ".join(package.distribution for package in found)
        raise XLMError(
            f"{group}={option} is offered by {names}. Hydra would silently take the first; "
            "rename the file in one of them, or uninstall one."
        )


def _check_complete(raw: object) -> None:
    """Reject a config with keys that have no value."""
    hints = {"job_type": f"Choose one of {', '.join(job_names())}."}
    if missing := list(missing_keys(raw)):
        lines = [describe_missing(key, hints.get(key)) for key in missing]
        raise XLMError("\n".join(["The config is not complete:", *lines]))


def _unshared(raw: Mapping[str, Any]) -> Iterator[str]:
    """Shared arguments that a single loader's collator overrides, as written in the config."""
    data = raw.get("datamodule") or {}
    for key, shared in (data.get("collator") or {}).items():
        for stage in ("train", "val", "test"):
            for name, loader in (data.get(stage) or {}).items():
                collator = (loader or {}).get("collator") or {}
                value = collator.get(key, shared)
                if value not in (shared, f"${{datamodule.collator.{key}}}"):
                    written = "null" if value is None else value
                    yield (
                        f"  datamodule.{stage}.{name}.collator.{key}: got {value!r} for this loader alone. "
                        f"All loaders share it: datamodule.collator.{key}={written}"
                    )


def missing_keys(node: object, prefix: str = "") -> Iterator[str]:
    """Mandatory keys without a value, dotted (OmegaConf's own search stops at references to them)."""
    if node == "???":
        yield prefix
    elif isinstance(node, Mapping):
        for key, value in cast("Mapping[str, object]", node).items():
            yield from missing_keys(value, f"{prefix}.{key}" if prefix else key)


def refers_to(key: str, node: object) -> bool:
    """Whether a value below ``node`` refers to ``key`` or to something below it."""
    if isinstance(node, Mapping):
        return any(refers_to(key, value) for value in cast("Mapping[str, object]", node).values())
    if isinstance(node, list):
        return any(refers_to(key, value) for value in cast("list[object]", node))
    return isinstance(node, str) and f"${{{key}" in node


def let_waiting_threads_sleep() -> None:
    """Let idle threads of an operation sleep instead of spinning.

    If another process occupies a core, spinning threads make a step of a small network ten times as long.
    OpenMP reads the variable when torch is imported; a variable that is set is not changed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def end(error: XLMError) -> NoReturn:
    """Print the error and exit with its code."""
    silence_closed_output()
    if error.exit_code == 1:
        sys.exit(f"Error: {error}")
    print(error, file=sys.stderr)  # noqa: T201
    sys.exit(error.exit_code)


def silence_closed_output() -> None:
    """Discard the output after a closed pipe: buffered output would raise again at the exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def hide_from_files() -> None:
    """Hide secrets in Hydra's own files: the overrides of a sweep, its folder of configs."""
    hydra_config = HydraConfig.get()
    hide_file(Path(hydra_config.sweep.dir, SWEEP))
    if hydra_config.output_subdir is not None:
        for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
            hide_file(Path(hydra_config.runtime.output_dir, hydra_config.output_subdir, name))


def explain(config: DictConfig) -> None:
    """Print the meaning, default and file of each key of the config, without running the job."""
    print(explanation(config))  # noqa: T201


def main(job: Callable[[DictConfig], object] = run_job) -> None:
    """Compose the command line with Hydra, then run its job; called after the checks of the arguments.

    Args:
        job: Function of the composed config.
    """
    register_search_path()
    wants_all = os.environ.get(FULL_ERROR)
    began = False

    def begin(config: DictConfig) -> None:
        nonlocal began
        began = True
        _set_environment(FULL_ERROR, wants_all)
        with mistakes_end_the_process():
            hide_from_files()
            job(config)

    os.environ[FULL_ERROR] = "1"  # before a job starts, Hydra raises its errors, which are then explained
    try:
        with experiment_of_the_model(sys.argv[1:]) as (arguments, folder):
            PackageConfigs.pushed = folder
            sys.argv[1:] = arguments
            hydra.main(config_path=str(CORE_CONFIGS), config_name="config", version_base="1.3")(begin)()
    except Exception as error:
        if began or wants_all == "1":
            raise
        if isinstance(error, BrokenPipeError):  # --cfg job | head
            silence_closed_output()
            return
        message = error if isinstance(error, XLMError) else machine.explained(error)
        end(message or XLMError(composition.explain(error, sys.argv[1:])))
    finally:
        _set_environment(FULL_ERROR, wants_all)
        if {"-m", "--multirun"} & set(sys.argv):  # a sweep whose first job did not compose
            hide_file(Path(SWEEP))


def experiment_of_the_model(arguments: list[str]) -> AbstractContextManager[tuple[list[str], Path | None]]:
    """The command line with the config beside the model in ``ckpt_path`` as an experiment, and its folder."""
    if not any(argument.lstrip("+").startswith("ckpt_path=") for argument in arguments):
        return nullcontext((arguments, None))
    from xlm.core.hub.pushed_config import as_experiment  # imports the client of the Hub

    return as_experiment(arguments)


@contextmanager
def mistakes_end_the_process() -> Generator[None]:
    """Exit with the message for a mistake of the user or a failure of the machine.

    Any other exception is a bug, and keeps its stack trace.
    """
    try:
        yield
    except Exception as error:
        message = error if isinstance(error, XLMError) else machine.explained(error)
        if message is None or os.environ.get(FULL_ERROR) == "1":
            raise
        end(message)


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
