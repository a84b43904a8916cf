"""Every family is exported and comes back: by its card alone, by the harness, by transformers."""

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from xlm.core.command.discovery import config_packages
from xlm.core.hub.allow_list import allowed_names, check_objects, targets
from xlm.core.hub.pushed_config import as_experiment
from xlm.core.hub.source import load

from .running import FAMILIES, composed

SMALL_NETWORK = ("model.trunk.d_model=32", "model.trunk.num_layers=2", "model.trunk.num_heads=2")
SHARED: dict[str, tuple[str, ...]] = {
    **{f"star_tiny_{family}": () for family in FAMILIES},
    "star_tiny_mdlm": ("model=rotary_tiny_mdlm",),
    "star_easy_mdlm": ("model=dit_tiny_mdlm",),
}
"""Experiments, with overrides; the network of mdlm is of two kinds."""


def random_run(folder: Path, experiment: str, overrides: tuple[str, ...]) -> nn.Module:
    """A run's folder with random weights; returns its network."""
    from xlm.core.config.build import make
    from xlm.core.training.run import resolve

    config = composed(
        experiment, "job_type=train", "job_name=run", f"output_dir={folder}", *SMALL_NETWORK, *overrides
    )
    (folder / "run" / "checkpoints").mkdir(parents=True)
    recorded = yaml.safe_dump(OmegaConf.to_container(config, resolve=False))
    (folder / "run" / "config.yaml").write_text(recorded)
    model = cast("nn.Module", make(resolve(config).settings.model, "model"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 1}, folder / "run" / "checkpoints" / "best-00000001.ckpt")
    return model


@pytest.mark.parametrize("experiment", SHARED)
def test_a_family_is_shared(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    from xlm.core.command.compose import run_job
    from xlm.core.config.build import make
    from xlm.core.training.run import resolve

    model = random_run(tmp_path, experiment, SHARED[experiment])
    config = composed(experiment, "job_type=export", "job_name=run", f"output_dir={tmp_path}")
    run_job(config)
    (folder,) = tmp_path.glob("run/export/*/model")

    # The example of the card, as it stands. Weights that are the same bits give logits that are.
    card = (folder / "README.md").read_text()
    (example,) = cast("list[str]", re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    expected = names["predict"](model.eval(), names["collate"](names["rows"]), torch.tensor([0, 1]))
    assert torch.equal(names["prediction"].ids, expected.ids)
    assert_same_weights(names["model"], model)

    # The config beside it, composed as a separate experiment.
    with as_experiment(["job_type=generate", "job_name=x", f"ckpt_path={folder}"]) as (arguments, extra):
        assert extra is not None
        written = yaml.safe_load(
            (extra / "experiment" / f"{arguments[-1].partition('=')[2]}.yaml").read_text()
        )
    others = OmegaConf.masked_copy(config, [str(key) for key in config if key != "model"])
    again = OmegaConf.merge(others, written)
    assert isinstance(again, type(config))
    run = resolve(again)
    loaded = cast("nn.Module", make(run.settings.model, "model"))
    load(loaded, str(folder))
    assert_same_weights(loaded, model)

    text = "3 1 4 [SEP] 5"
    assert AutoTokenizer.from_pretrained(folder)(
        text, add_special_tokens=False
    ).input_ids == run.tokenizer.encode(text)


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], value), name


def test_all_declared_classes_are_there_by_their_names() -> None:
    check_objects({"all": [{"_target_": name} for name in allowed_names()]}, "everything")


def test_configs_name_declared_classes() -> None:
    """A class of ours that a config names has to be declared under xlm.classes of its pyproject.toml."""
    named = {
        target
        for package in config_packages()
        if package.folder is not None
        for file in package.folder.rglob("*.yaml")
        for _, target in targets(yaml.safe_load(file.read_text()))
        if target.startswith("xlm")
        and not target.startswith(("xlm.core.training.callbacks.", "xlm.core.loggers."))
    }
    assert "xlm_ilm.ILM" in named
    assert not named - allowed_names().keys()
