"""Compose ``experiment=toy`` and run a job of it, in whichever process."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xlm.core.command.compose import CORE_CONFIGS, register_search_path, run_job

HERE = Path(__file__).parent


def composed(root: Path, *overrides: str) -> DictConfig:
    """The config; runs and cache lie under ``root``."""
    register_search_path()
    with initialize_config_dir(str(CORE_CONFIGS), version_base="1.3"):
        config = compose(
            "config",
            overrides=[
                f"hydra.searchpath=[file://{HERE / 'toy_configs'}]",
                "job_name=toy",
                "experiment=toy",
                f"output_dir={root / 'runs'}",
                f"datamodule.cache_dir={root / 'cache'}",
                "trainer.accelerator=cpu",
                "callbacks.progress=null",
                *overrides,
            ],
            return_hydra_config=True,
        )
    HydraConfig.instance().set_config(config)
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.set_struct(config, True)
    return config


def run(root: Path, *overrides: str) -> dict[str, float]:
    """Compose, check and run a job as the command line does."""
    return run_job(composed(root, *overrides))
