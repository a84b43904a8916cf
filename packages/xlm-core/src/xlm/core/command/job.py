"""Base classes of jobs: a schema of the keys that a job adds to the config, and its method ``run``.

A package declares a job by an entry point, whose name is that of ``job_type``:

    [project.entry-points."xlm.jobs"]
    frontier = "xlm_frontier.job:Frontier"

`xlm --help` lists it with the first line of its docstring and imports nothing. The module is imported when a
command line names the job, before any check, so it must import torch only inside of ``run``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from omegaconf import DictConfig

from xlm.core.command.arguments import check_choice
from xlm.core.command.discovery import job_names
from xlm.core.config.entry_points import JOBS, load, offered, owner
from xlm.core.config.errors import XLMError
from xlm.core.config.near import did_you_mean
from xlm.core.config.schema import RunSettings, Settings
from xlm.core.config.validation import validated

if TYPE_CHECKING:
    from xlm.core.training.run import Run


class Job(Settings, ABC):
    """A job on a run, with the config of an experiment and its own fields."""

    reads_checkpoint: ClassVar[bool] = False
    """Whether it needs a checkpoint: that of ``ckpt_path``, else the run's own."""

    def check(self, settings: RunSettings) -> None:
        """Reject unsuitable settings before torch is imported.

        Args:
            settings: The config, without the tokenizer's values.

        Raises:
            XLMError: If a key is wrong; names it and the remedy.
        """
        if settings.from_run is not None:
            raise XLMError(
                f"from: only job_type=train starts from another run, not job_type={settings.job_type}"
            )

    def choose_config(self, config: DictConfig) -> DictConfig:
        """The config that is resolved: the composed one, unless the job uses the recorded config of a run."""
        return config

    @abstractmethod
    def run(self, run: "Run") -> dict[str, float]:
        """Run the job.

        Returns:
            The job's metrics.
        """


class Tool(Settings, ABC):
    """A job without an experiment, on other runs or the installation; its fields are its whole config."""

    @abstractmethod
    def run(self) -> int:
        """Run the job.

        Returns:
            The exit code.
        """


def load_job(name: str) -> type[Job] | type[Tool]:
    """Import the class of a job.

    Raises:
        XLMError: If not exactly one package offers it, it cannot be imported, or is not a job.
    """
    check_choice("job_type", name, job_names(), "job")
    found = load(JOBS, name)
    if not (isinstance(found, type) and issubclass(found, Job | Tool)):
        point = offered(JOBS)[name][0]
        raise XLMError(
            f"job_type={name}: {point.value} of {owner(point)} is neither a Job nor a Tool "
            "(xlm.core.command.job)"
        )
    return found


def own_values(job: type[Job], config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the keys that a job adds, in a composed config."""
    return {name: config[name] for name in job.model_fields if name in config}


def add_own_keys(job: type[Job], arguments: Sequence[str]) -> list[str]:
    """The command line with ``++`` before the keys that a job adds, which Hydra's configs lack."""
    return [
        f"++{word}" if word.partition("=")[0].partition(".")[0] in job.model_fields else word
        for word in arguments
    ]


def read_tool(name: str, tool: type[Tool], arguments: Sequence[str]) -> Tool:
    """A tool with the values of the command line, each read as YAML.

    Raises:
        XLMError: If an argument is not a key of the tool, or its value does not fit; names it.
    """
    values: dict[str, Any] = {}
    for word in arguments:
        key, separator, text = word.partition("=")
        if key == "job_type":
            continue
        if not separator or key not in tool.model_fields:
            known = "only " + " and ".join(f"{field}=VALUE" for field in tool.model_fields)
            has = known if tool.model_fields else "no other key"
            raise XLMError(f"{key}: job_type={name} has {has}.{did_you_mean(key, tool.model_fields)}")
        values[key] = _value(text)
    return validated(tool, values)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # special characters, such as those of a pattern: it is a text
        return text
