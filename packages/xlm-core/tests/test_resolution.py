"""Objects are made from plain values: what a text turns into is never resolved a second time."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from xlm.core.config.build import make
from xlm.core.config.errors import XLMError
from xlm.core.training.run import resolve

from .conftest import Compose


def made(config: DictConfig) -> Any:
    """What is made of the node ``loss`` once the config is resolved."""
    node: Any = OmegaConf.to_container(config, resolve=True)
    return make(node["loss"], "loss")


def create(trace: Path) -> str:
    """A call of a resolver that makes a file, without the dollar in front."""
    path = f"{{_target_: pathlib.Path, _args_: [{trace}]}}"
    return f"{{oc.create:{{_target_: pathlib.Path.touch, _args_: [{path}]}}}}"


@pytest.mark.parametrize("where", ["argument", "list", "deep", "two parts", "behind a reference"])
def test_a_text_that_turns_into_a_resolver_is_refused(where: str, tmp_path: Path) -> None:
    call = "${monitor}" + create(tmp_path / "trace")
    nodes: dict[str, dict[str, Any]] = {
        "argument": {"x": call},
        "list": {"x": [1, call]},
        "deep": {"x": {"y": [{"z": call}]}},
        "two parts": {"x": "${monitor}${rest}"},
        "behind a reference": {"x": "${other}"},
    }
    config = OmegaConf.create(
        {
            "monitor": "$",
            "rest": create(tmp_path / "trace"),
            "other": {"y": call},
            "loss": {"_target_": "builtins.dict", **nodes[where]},
        }
    )
    with pytest.raises(XLMError, match=r"^loss\.x\S*: a text that turns into a reference .* is not resolved"):
        made(config)
    assert not (tmp_path / "trace").exists()


def test_references_are_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLM_NOTE", "noted")
    node = {
        "_target_": "builtins.dict",
        "a": "${size}",
        "b": ["${oc.env:XLM_NOTE}"],
        "c": "$",
        "d": "x${size}y",
    }
    config = OmegaConf.create({"size": 3, "loss": node})
    assert made(config) == {"a": 3, "b": ["noted"], "c": "$", "d": "x3y"}


def test_a_run_is_resolved_once_and_its_record_keeps_the_references(compose_toy: Compose) -> None:
    config = compose_toy("job_type=train", 'datamodule.cache_dir="~/cache"', "++sweep={steps: [1, 2]}")
    before = OmegaConf.to_yaml(config)
    run = resolve(config, own_keys=["sweep"])
    assert OmegaConf.to_yaml(config) == before
    assert run.settings.model["vocab_size"] == run.tokenizer.vocab_size == run.settings.vocab["size"]
    assert run.settings.datamodule.cache_dir == str(Path.home() / "cache")
    assert run.record["model"]["vocab_size"] == "${vocab.size}"
    assert run.record["vocab"]["size"] is None
    assert run.record["sweep"] == {"steps": [1, 2]}
    with pytest.raises(XLMError, match="sweep: unknown key"):
        resolve(config)
