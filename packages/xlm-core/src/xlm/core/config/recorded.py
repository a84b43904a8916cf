"""Configs that an earlier job has written, read again: of a run's folder, or beside the weights of a model.

Every such file is read here, so that what another version of XLM has written is understood in one place.
"""

from pathlib import Path
from typing import Any, cast

from xlm.core.config.errors import XLMError
from xlm.core.config.format import current
from xlm.core.config.texts import read_yaml

CONFIG = "config.yaml"
"""Name of the file in the folder of a run."""


def read_config(file: Path, what: str | None = None) -> dict[str, Any]:
    """The config in a file, with its references, as this version writes it.

    Args:
        file: The file.
        what: What the user calls it, for messages; None for its path.

    Raises:
        XLMError: When it cannot be read, holds no mapping of keys to values, or is of a later version.
    """
    name = what or str(file)
    content = read_yaml(file, name)
    if not isinstance(content, dict):
        raise XLMError(f"{name} is no config: it holds no mapping of keys to values")
    return current(cast("dict[str, Any]", content), name)
