"""``--cfg explained``: every key with its meaning, its default and its file, in a terminal's width."""

import subprocess
import sys
from typing import Any, cast

import pytest
import yaml
from omegaconf import OmegaConf

from xlm.core.command.arguments import wants_explanation, without_explanation
from xlm.core.command.compose import CORE_CONFIGS
from xlm.core.config.meanings import argument_defaults, argument_meanings, comment_at, field_meanings
from xlm.core.config.schema import loader_defaults, validate

from .conftest import Compose

PROGRAM = """
import sys
from xlm.core.command.cli import main
main()
assert "torch" not in sys.modules and "lightning" not in sys.modules
"""


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a config without slots of any family: the core's own files and one override."""
    words = ["job_type=train", "job_name=x", "optimizer.lr=0.5", "noise=cosine", "--cfg", "explained"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path_factory.mktemp("empty"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_key_has_meaning_default_and_file(explained: str) -> None:
    assert (
        "seed: 42\n    Seed of data order, noise, initial weights, dropout and sampling.\n"
        "    xlm-core: config.yaml\n" in explained
    )
    assert "\noptimizer.lr: 0.5\n    " in explained
    changed = explained.partition("\noptimizer.lr: 0.5\n")[2].splitlines()
    assert changed[1].startswith("    default ")
    assert changed[1].endswith("; command line")
    assert "noise.eps: 0.0\n" in explained
    assert "\n    default 0.001; xlm-core: noise/cosine.yaml\n" in explained.partition("noise.eps: 0.0\n")[2]


def test_defaults_of_loaders_are_those_of_the_schema(compose_toy: Compose) -> None:
    changed = compose_toy(
        "job_type=train", "datamodule.val.lm.max_rows=5", "datamodule.test.lm.num_workers=1"
    )
    settings = validate(cast("dict[str, Any]", OmegaConf.to_container(changed, resolve=True))).datamodule
    assert (settings.val["lm"].max_rows, settings.test["lm"].num_workers) == (5, 1)
    base = yaml.safe_load((CORE_CONFIGS / "datamodule" / "base.yaml").read_text())
    for stage, loaders in settings.loaders.items():
        for name, loader in loaders.items():
            left_out = loader_defaults().keys() - base[stage][name].keys()
            assert "batch_size" in left_out
            assert left_out <= changed.datamodule[stage][name].keys()
            assert loader.batch_size == settings.batch_size
    with pytest.raises(Exception, match="max_row"):
        compose_toy("job_type=train", "datamodule.val.lm.max_row=5")


def test_nothing_is_wider_than_a_terminal(explained: str) -> None:
    assert not [line for line in explained.splitlines() if len(line) > 88 and " " in line.strip()]


def test_the_option_may_stand_anywhere_and_is_taken_out() -> None:
    for words in (["a=1", "--cfg", "explained", "b=2"], ["-c", "explained", "a=1", "b=2"]):
        assert wants_explanation(words)
        assert without_explanation(words) == ["a=1", "b=2"]
    assert not wants_explanation(["--cfg", "job", "job_name=explained"])


def test_meanings_are_read_from_the_sources() -> None:
    assert field_meanings()["RunSettings"]["job_type"].startswith("The job: ")
    assert argument_meanings("xlm.modules.RotaryTransformer")["num_layers"] == "Number of blocks."
    assert argument_defaults("xlm.modules.RotaryTransformer") == {
        "d_ff": "null",
        "dropout": "0.0",
        "activation": "gelu",
        "rotary_dim": "null",
        "causal": "false",
        "norm_eps": "1.0e-05",
    }
    assert argument_defaults("xlm.modules.LogLinear") == {"eps": "0.001"}
    assert argument_meanings("xlm.modules.NoSuchClass") == argument_defaults("torch.optim.AdamW") == {}
    assert comment_at(["a: 1  # one", "  # two", "b: 2"], 0) == "one"
    assert comment_at(["a: 1  # one", "  # two", "b: 2"], 2) == "two"
