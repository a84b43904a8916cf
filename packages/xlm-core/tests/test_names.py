"""One pattern of names, wherever a name becomes a folder, a file or a label."""

import pytest
from omegaconf import OmegaConf

from xlm.core.config.errors import XLMError
from xlm.core.config.names import ALLOWED, LONGEST
from xlm.core.config.schema import validate

from .conftest import Compose

NO_NAMES = ("", ".", "..", "../../elsewhere", "/elsewhere", "a/b", "a\\b", "-a", ".a", "a b", "a\n", "é",
            "a\0", "~", "C:a", "a" * (LONGEST + 1))  # fmt: skip
VALUES = ("job_name", "task.name")
KEYS = ("datamodule.train", "datamodule.val", "datamodule.test", "task.metrics", "loss_metrics", "callbacks",
        "logger")  # fmt: skip


@pytest.mark.parametrize("key", VALUES)
def test_a_value_that_is_no_name_is_refused(compose_toy: Compose, key: str) -> None:
    config = compose_toy("job_type=train")
    for name in ("a", "star_tiny-1.0", "2024", "a" * LONGEST):
        OmegaConf.update(config, key, name)
        validate(OmegaConf.to_container(config, resolve=True))  # pyright: ignore[reportArgumentType]
    for name in NO_NAMES:
        OmegaConf.update(config, key, name)
        with pytest.raises(XLMError) as error:
            validate(OmegaConf.to_container(config, resolve=True))  # pyright: ignore[reportArgumentType]
        assert str(error.value).splitlines()[1:] == [f"  {key}: got {name!r}. {ALLOWED}."]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_no_name_is_refused(compose_toy: Compose, key: str) -> None:
    config = OmegaConf.to_container(compose_toy("job_type=train"), resolve=True)
    assert isinstance(config, dict)
    node = config
    for part in key.split("."):
        node = node[part]
    entry = next(iter(node.values()), {"_target_": "a.b"})
    for name in NO_NAMES:
        node[name] = entry
        with pytest.raises(XLMError, match="A name begins with") as error:
            validate(config)  # pyright: ignore[reportArgumentType]
        assert f"got {name!r}" in str(error.value)
        del node[name]
