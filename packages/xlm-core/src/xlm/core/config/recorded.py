"""Reading of configs that an earlier job has written: of a run's folder, or beside the weights of a model.

Every such file is read here, so that files of other versions of XLM are converted in one place.
"""

from pathlib import Path
from typing import Any, cast

from xlm.core.config.errors import XLMError
from xlm.core.config.format import current
from xlm.core.config.texts import read_yaml


def read_config(file: Path, what: str | None = None) -> dict[str, Any]:
    """The config in a file, with its references, as this version writes it.

    Args:
        file: The file.
        what: The user's name for it, for messages; None for its path.

    Raises:
        XLMError: If it cannot be read, holds no mapping of keys to values, or has a later version.
    """
    name = what or str(file)
    content = read_yaml(file, name)
    if not isinstance(content, dict):
        raise XLMError(f"{name} is not a config: it holds no mapping of keys to values")
    return current(cast("dict[str, Any]", content), name)
