"""The one pattern of names: of runs, data sets, loaders, metrics, callbacks. A name may become a folder."""

import re
from typing import Annotated

from pydantic import AfterValidator

LONGEST = 200
"""Characters of a name; file systems take 255 bytes, and names get suffixes."""
PATTERN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")
ALLOWED = (
    "A name begins with a letter or a digit and goes on with these, '.', '_' and '-', "
    f"{LONGEST} characters at most"
)


def check_name(name: str) -> str:
    """The name, if it is one.

    Raises:
        ValueError: Saying what a name looks like.
    """
    if not PATTERN.fullmatch(name):
        raise ValueError(ALLOWED)
    return name


Name = Annotated[str, AfterValidator(check_name)]
"""A name in a config, as a value or as a key."""
