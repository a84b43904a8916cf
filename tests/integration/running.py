"""Compose a config and run a job in this process, as the command line does."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xlm.core.command.compose import CORE_CONFIGS, check, register_search_path, run_job
from xlm.core.command.discovery import providers

EXPERIMENTS = list(providers("experiment"))
FAMILIES = [name.removeprefix("star_tiny_") for name in EXPERIMENTS if name.startswith("star_tiny_")]


def composed(experiment: str | None, *overrides: str) -> DictConfig:
    """A composed and checked config; without an experiment the overrides name a recipe and a family."""
    chosen = [] if experiment is None else [f"experiment={experiment}"]
    register_search_path()
    with initialize_config_dir(str(CORE_CONFIGS), version_base="1.3"):
        config = compose("config", [*chosen, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    check(config)
    return config


def run_fast(
    folder: Path, cache: Path, job_type: str, experiment: str | None, *overrides: str
) -> dict[str, float]:
    """Run a job with ``debug=fast`` on a few rows."""
    config = composed(
        experiment,
        f"job_type={job_type}",
        "job_name=fast",
        "debug=fast",
        f"output_dir={folder}",
        f"datamodule.cache_dir={cache}",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "callbacks.progress=null",
        *overrides,
    )
    return run_job(config)
