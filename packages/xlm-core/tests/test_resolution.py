"""Objects are made from plain values: what a text turns into is never resolved a second time."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from xlm.core.config.build import make, plain_node
from xlm.core.config.errors import XLMError


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
        make(config, "loss")
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
    assert make(config, "loss") == {"a": 3, "b": ["noted"], "c": "$", "d": "x3y"}
    config.size = 4  # references stay in the config
    assert plain_node(config, "loss")["d"] == "x4y"
