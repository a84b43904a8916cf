"""Checks that an object fits its slot, by its methods and their signatures.

(``isinstance`` with runtime-checkable Protocols compares names only, so it accepts methods with the wrong
arguments.)
"""

import inspect
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, NoReturn

from xlm.core.config.errors import XLMError


def refuse(key: str, slot: str, filling: object, reason: str) -> NoReturn:
    """Report an object that does not fit.

    Raises:
        XLMError: If it is called; names the slot, the config key, the class and the reason.
    """
    name = f"{type(filling).__module__}.{type(filling).__qualname__}"
    raise XLMError(
        f"The slot {slot} (config key `{key}`) is filled with {name}, which does not fit: {reason}."
    )


def check_methods(filling: object, key: str, slot: str, names: Iterable[str]) -> None:
    """Reject an object that lacks one of ``names``."""
    missing = [name for name in names if not hasattr(filling, name)]
    if missing:
        refuse(key, slot, filling, f"it has no {', '.join(missing)}")


def check_call(filling: Any, key: str, slot: str, arguments: str, **keywords: object) -> None:
    """Reject an object that cannot be called with ``arguments`` (space-separated names of positionals)."""
    check_methods(filling, key, slot, ("__call__",))
    try:
        inspect.signature(filling).bind(*arguments.split(), **keywords)
    except TypeError as error:
        call = ", ".join([*arguments.split(), *(f"{name}=..." for name in keywords)])
        refuse(key, slot, filling, f"it cannot be called as ({call}): {error}")


@contextmanager
def blame(key: str, slot: str, filling: object, of: str = "") -> Generator[None]:
    """Turn an exception in the code of a slot into a message that names the slot."""
    try:
        yield
    except XLMError:
        raise
    except Exception as error:
        name = f"{type(filling).__module__}.{type(filling).__qualname__}"
        raise XLMError(
            f"The slot {slot} (config key `{key}`, {name}) failed on the first rows{of}:\n"
            f"  {type(error).__name__}: {error}"
        ) from error
