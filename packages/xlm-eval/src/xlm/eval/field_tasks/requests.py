"""The requests of the harness, in tokens: text is divided as its own models divide it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from xlm.core.config.errors import XLMError
from xlm.core.protocols import Tokenizer

TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the limit of new tokens, the first one that is given counts."""
SAMPLING = ("temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Start:
    """A context to continue."""

    context: Sequence[int]
    document: int
    """Index of its document, whose noise all requests about it share."""
    part: int
    """Number of the request among equal ones."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are read."""
        return len(self.context)

    def with_context(self, context: Sequence[int]) -> Self:
        """The same with another context."""
        return replace(self, context=context)


@dataclass(frozen=True)
class Continuation(Start):
    """Tokens to score, given their context."""

    ids: Sequence[int]

    @property
    def num_tokens(self) -> int:
        """Tokens that are read."""
        return len(self.context) + len(self.ids)


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text.

    Raises:
        XLMError: If the tokenizer has no tokens for it.
    """
    try:
        return list(tokenizer.encode(text))
    except (KeyError, ValueError) as error:
        raise XLMError(f"tasks: the tokenizer of the run cannot encode {text[:60]!r}: {error}") from error


def encode_pair(
    context: str, continuation: str, tokenizer: Tokenizer, *, together: bool
) -> tuple[list[int], list[int]]:
    """Ids of a context and of its continuation, as the harness divides them.

    Spaces at the end of the context belong to the continuation.

    Args:
        context: The context, may be empty.
        continuation: The text to score.
        tokenizer: Of the run.
        together: Whether the ids of the continuation are those of both texts together, behind as many as the
            context has alone; else each text is tokenised alone, as a prompt and its target are.

    Raises:
        XLMError: If the continuation has no token.
    """
    bare = context.rstrip()
    given = encode(bare, tokenizer) if bare else []
    if together:
        ids = encode(context + continuation, tokenizer)[len(given) :]
    else:
        ids = encode(context[len(bare) :] + continuation, tokenizer)
    if not ids:
        raise XLMError(f"loglikelihood: the continuation {continuation!r} of {context[-40:]!r} has no token")
    return given, ids


@dataclass(frozen=True)
class Decoding:
    """How a task of the harness generates its texts."""

    until: tuple[str, ...]
    """Texts that end the generation, and are not part of it."""
    num_new: int | None
    """Most new tokens; None if the task sets none."""
    sampling: Mapping[str, Any]
    """Arguments of the predictor that replace those of the config."""

    @staticmethod
    def of(kwargs: Mapping[str, Any], predictor: Mapping[str, Any]) -> "Decoding":
        """Read a task's arguments of a generation: greedy unless they sample, as in the harness.

        Args:
            kwargs: The arguments.
            predictor: The config of the predictor, of which those are replaced.

        Raises:
            XLMError: If an argument is unknown, or the predictor lacks it.
        """
        known = {"until", "do_sample", *TOKEN_LIMITS, *SAMPLING}
        if unknown := sorted(kwargs.keys() - known):
            raise XLMError(
                f"gen_kwargs: the predictor takes no {', '.join(unknown)} from a task. Known: "
                f"{', '.join(sorted(known))}"
            )
        until = kwargs.get("until") or []
        limits = [kwargs[name] for name in TOKEN_LIMITS if kwargs.get(name) is not None]
        temperature = kwargs.get("temperature")
        if kwargs.get("do_sample", bool(temperature)):
            wanted = {**dict.fromkeys(SAMPLING), **kwargs, "temperature": float(temperature or 1.0)}
        else:
            wanted = {"temperature": 0.0}
        sampling = {name: wanted[name] for name in SAMPLING if name in wanted and name in predictor}
        missing = [name for name in SAMPLING if wanted.get(name) and name not in predictor]
        if missing:
            raise XLMError(f"gen_kwargs: the predictor {predictor['_target_']} has no {', '.join(missing)}")
        return Decoding(
            until=(until,) if isinstance(until, str) else tuple(until),
            num_new=int(limits[0]) if limits else None,
            sampling=sampling,
        )

    def cut(self, text: str) -> str:
        """The text up to the first of the texts that end it."""
        for end in self.until:
            if end:
                text = text.partition(end)[0]
        return text
