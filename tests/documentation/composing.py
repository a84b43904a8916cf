"""The config that a documented command comes to, without running it."""

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from xlm.core.command.cli import chosen_jobs
from xlm.core.command.compose import CORE_CONFIGS, check, register_search_path
from xlm.core.command.job import Job, add_own_keys, load_job


def composed_for(arguments: list[str]) -> DictConfig:
    """Compose and check the config of the first run of a command.

    Args:
        arguments: What stands behind ``xlm``.

    Raises:
        XLMError: When the config is not valid.
    """
    GlobalHydra.instance().clear()
    register_search_path()
    for name in chosen_jobs(arguments):
        job = load_job(name)
        assert issubclass(job, Job)
        arguments = add_own_keys(job, arguments)
    with initialize_config_dir(str(CORE_CONFIGS), version_base="1.3"):
        config = compose("config", single_run(arguments), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    check(config)
    return config


def single_run(arguments: list[str]) -> list[str]:
    """Overrides of the first run of a command: the first value of each sweep, nothing about launchers."""
    overrides = [word for word in arguments if "=" in word or word.startswith("~")]
    first: list[str] = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.key_or_group.startswith(("hydra.", "hydra/")):
            continue
        value = next(iter(override.sweep_string_iterator())) if override.is_sweep_override() else None
        first.append(
            f"{override.get_key_element()}={value}" if value is not None else str(override.input_line)
        )
    return first
