"""Comparison of models, and checks of their numbers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xlm.eval.auditing.functions import audit as audit
    from xlm.eval.auditing.language import Vocabulary as Vocabulary

__all__ = ["Vocabulary", "audit"]


def __getattr__(name: str) -> object:
    """Import the audit when it is used: the command line lists the jobs of this package without torch."""
    if name == "audit":
        from xlm.eval.auditing.functions import audit

        return audit
    if name == "Vocabulary":
        from xlm.eval.auditing.language import Vocabulary

        return Vocabulary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
