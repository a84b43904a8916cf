"""A toy family (``toy_family.py``) and its configs, so that the core is tested without any real one."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xlm.core.run import CORE_CONFIGS, check, register_search_path

HERE = Path(__file__).parent
Compose = Callable[..., DictConfig]
Run = Callable[..., dict[str, float]]


@pytest.fixture(autouse=True)
def toy_family_is_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HERE))
    yield
    sys.modules.pop("toy_family", None)


@pytest.fixture
def compose_toy(tmp_path: Path) -> Compose:
    """Composes ``experiment=toy`` with overrides; runs and cache lie in the test's own folder."""

    def composed(*overrides: str) -> DictConfig:
        register_search_path()
        with initialize_config_dir(str(CORE_CONFIGS), version_base="1.3"):
            config = compose(
                "config",
                overrides=[
                    f"hydra.searchpath=[file://{HERE / 'toy_configs'}]",
                    "job_name=toy",
                    "experiment=toy",
                    f"output_dir={tmp_path / 'runs'}",
                    f"datamodule.cache_dir={tmp_path / 'cache'}",
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

    return composed


@pytest.fixture
def run_toy(compose_toy: Compose) -> Run:
    """Composes, checks and runs a job as the command line does."""

    def run(*overrides: str) -> dict[str, float]:
        from xlm.core import jobs

        config = compose_toy(*overrides)
        return jobs.run(config, check(config, dict(HydraConfig.get().runtime.choices)))

    return run
