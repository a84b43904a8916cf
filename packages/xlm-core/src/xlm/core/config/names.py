"""The pattern of names of runs, data sets, loaders, metrics and callbacks, which may become folders."""

import re
from typing import Annotated

from pydantic import AfterValidator

LONGEST = 200
"""Maximum length of a name; file systems allow 255 bytes, and names receive suffixes."""
PATTERN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")
ALLOWED = (
    "A name starts with a letter or a digit, followed by letters, digits, '.', '_' and '-', "
    f"with at most {LONGEST} characters"
)


def check_name(name: str) -> str:
    """Return a valid name.

    Raises:
        ValueError: If it is not a name; states the pattern.
    """
    if not PATTERN.fullmatch(name):
        raise ValueError(ALLOWED)
    return name


Name = Annotated[str, AfterValidator(check_name)]
"""A name in a config, as a value or as a key."""
