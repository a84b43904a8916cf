"""The trunk of a network: what turns token ids into hidden states, below the heads of any model family.

A trunk is an ``nn.Module`` that fits :class:`Trunk`; nothing is inherited. Its signature determines what it
takes beyond the ids: a family with a time hands it ``condition``, one that decodes with a cache ``cache``. It
keeps its constructor's arguments as attributes of the same names, where ``save_pretrained`` finds them.

With ``prompt_sees_target=False`` tokens of the prompt attend to the prompt only, those of the target to
everything. The states of the prompt then do not depend on the target, and a predictor computes them once, for
which the trunk takes a cache (:class:`xlm.modules.PromptCache`).
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules.cache import KeyValueCache, PromptCache
from xlm.modules.masks import PiecewiseMask

KEY = "model.trunk"
"""Config key of the trunk; messages start with it."""


class Trunk(Protocol):
    """Token ids to hidden states: :class:`xlm.modules.RotaryTransformer`, :class:`xlm.modules.DiT`, yours."""

    d_model: int
    """Width of the hidden states, which the heads are made for."""

    def __call__(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length length"] | None = None,
        position_ids: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Hidden states of each token.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: True at real tokens, shape (batch, length); or True where a query (axis 1) sees a
                key (axis 2), shape (batch, length, length); None if nothing is padding.
            position_ids: Position of each token in the text, shape (batch, length): the columns need not be
                in the order of the text. By default the number of real tokens to the left.

        Returns:
            Hidden states, shape (batch, length, d_model); those at padding are finite.
        """
        ...


class ConditionedTrunk(Protocol):
    """A trunk that is conditioned on a vector per row, such as an embedding of the time."""

    d_model: int
    """Width of the hidden states."""
    d_condition: int
    """Width of the condition."""

    def __call__(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length length"] | None = None,
        position_ids: Int[Tensor, "batch length"] | None = None,
        *,
        condition: Float[Tensor, "batch d_condition"] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """As :class:`Trunk`, with the condition of each row, shape (batch, d_condition)."""
        ...


class CausalTrunk(Protocol):
    """A trunk whose tokens see themselves and their left only, and which decodes token by token."""

    d_model: int
    """Width of the hidden states."""
    causal: bool
    """True: no hidden state depends on what stands on its right."""

    def __call__(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length length"] | None = None,
        position_ids: Int[Tensor, "batch length"] | None = None,
        *,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """As :class:`Trunk`; with a cache the ids are those that follow what it holds."""
        ...


AnyTrunk = TypeVar("AnyTrunk", Trunk, ConditionedTrunk, CausalTrunk)


def choose_trunk(given: AnyTrunk | None, default: Callable[..., AnyTrunk], **sizes: object) -> AnyTrunk:
    """The trunk that is given, or the default one of the given sizes; not both.

    Args:
        given: A trunk, or None.
        default: The class that is made without one.
        **sizes: Arguments of ``default``; None where a required one is not given.

    Returns:
        The trunk, its signature checked.

    Raises:
        ValueError: If neither a trunk nor all sizes are given, sizes are given beside a trunk, or the trunk
            does not fit.
    """
    parameters = inspect.signature(default).parameters
    required = [name for name in sizes if parameters[name].default is inspect.Parameter.empty]
    if given is not None:
        defaults = {name: None if name in required else parameters[name].default for name in sizes}
        if extra := [name for name, size in sizes.items() if size != defaults[name]]:
            raise ValueError(
                f"{KEY} is given, so {', '.join(extra)} would change nothing: such sizes are arguments of "
                f"the trunk ({KEY}.{extra[0]})"
            )
        check_trunk(given)
        return given
    if missing := [name for name in required if sizes[name] is None]:
        raise ValueError(f"without a trunk the network needs {', '.join(missing)}")
    return default(**sizes)


def check_trunk(trunk: object) -> None:
    """Check a trunk by its signature.

    Raises:
        ValueError: If a part is missing; names ``model.trunk``, its class and the part.
    """
    name = _name(trunk)
    if not isinstance(trunk, nn.Module):
        raise ValueError(f"{name} is no torch.nn.Module, so its weights would not be trained")
    width = getattr(trunk, "d_model", None)
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"{name} has no d_model, the width of its hidden states, which the heads need")
    try:
        inspect.signature(trunk.forward).bind("input_ids", "attention_mask", "position_ids")
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called as (input_ids, attention_mask, position_ids): {error}"
        ) from error


def takes(trunk: object, keyword: str) -> bool:
    """Whether a trunk takes ``condition`` or ``cache``, by its signature."""
    assert isinstance(trunk, nn.Module)
    parameters = inspect.signature(trunk.forward).parameters.values()
    return any(p.name == keyword or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def check_condition(trunk: object, d_condition: int) -> None:
    """Check that a trunk takes a condition of this width.

    Raises:
        ValueError: If a part is missing; names ``model.trunk``, its class and the part.
    """
    if not takes(trunk, "condition"):
        raise ValueError(f"{_name(trunk)} takes no condition: this network hands it the noise of each row")
    if (width := getattr(trunk, "d_condition", None)) != d_condition:
        raise ValueError(
            f"{_name(trunk)} has d_condition={width}, and the condition has the width {d_condition}"
        )


def check_causal(trunk: object) -> None:
    """Check that a trunk is declared causal, and takes a cache.

    Raises:
        ValueError: If a part is missing; names ``model.trunk``, its class and the part.
    """
    if getattr(trunk, "causal", False) is not True:
        raise ValueError(
            f"{_name(trunk)} is not causal: a token would see the one that is to be predicted. A trunk "
            "whose tokens see nothing on their right says so by its attribute causal = True"
        )
    if not takes(trunk, "cache"):
        raise ValueError(f"{_name(trunk)} takes no cache, with which this network decodes token by token")


def check_prompt(trunk: object, *, sees_target: bool) -> None:
    """Check that a trunk takes a cache of the prompt, if the prompt does not see the target.

    Raises:
        ValueError: If it takes no cache or is causal, naming ``model.trunk`` and its class.
    """
    if not sees_target and (getattr(trunk, "causal", False) or not takes(trunk, "cache")):
        raise ValueError(
            "model.prompt_sees_target=false requires a bidirectional trunk that takes a cache of the prompt, "
            f"and {_name(trunk)} is none: set model.prompt_sees_target=true, or take the trunk "
            "xlm.modules.RotaryTransformer"
        )


def prompt_sees_target(model: Callable[..., Any]) -> bool:
    """Whether the prompt of a network sees the target, which it denies by ``prompt_sees_target = False``.

    Losses and predictors read it here, and give ``prompt`` or ``cache`` only to networks that deny it.
    """
    return bool(getattr(model, "prompt_sees_target", True))


def prompt_mask(
    prompt: Bool[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
) -> Bool[Tensor, "rows length length"]:
    """Attention mask with which the prompt sees itself only, and the target everything.

    Args:
        prompt: True at the tokens of the prompt, shape (rows, length).
        attention_mask: That of a trunk, which is narrowed.

    Returns:
        True where a query (axis 1) sees a key (axis 2), shape (rows, length, length).
    """
    seen = prompt.unsqueeze(1) | ~prompt.unsqueeze(2)
    if attention_mask is None:
        return seen
    return seen & (attention_mask.unsqueeze(1) if attention_mask.dim() == 2 else attention_mask)


def states_at(
    trunk: Callable[..., Tensor],
    positions: Int[Tensor, " cells"] | None,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"]
    | Bool[Tensor, "rows length length"]
    | PiecewiseMask
    | None = None,
    position_ids: Int[Tensor, "rows length"] | None = None,
    **more: Any,
) -> Float[Tensor, "*cells d_model"]:
    """Hidden states of the cells that a head reads, checked by their shape.

    A trunk with the attribute ``takes_positions = True`` receives ``positions`` and returns the states of
    these cells alone, shape (cells, d_model), for which its last block does less.

    Args:
        trunk: The trunk.
        positions: Cells, as indices into the rows * length ones, shape (cells,); None for all of them.
        input_ids: Ids of the rows.
        attention_mask: As in :class:`Trunk`.
        position_ids: As in :class:`Trunk`.
        **more: Further arguments of the trunk.

    Returns:
        Hidden states, shape (cells, d_model) or, without ``positions``, (rows, length, d_model).
    """
    if positions is None or not getattr(trunk, "takes_positions", False):
        hidden = check_hidden(trunk(input_ids, attention_mask, position_ids, **more), input_ids, trunk)
        return hidden if positions is None else hidden.flatten(0, 1).index_select(0, positions)
    hidden = trunk(input_ids, attention_mask, position_ids, positions=positions, **more)
    return check_hidden(hidden, positions, trunk)


def call_trunk(
    trunk: Callable[..., Tensor],
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    position_ids: Int[Tensor, "rows length"] | None,
    *,
    positions: Int[Tensor, " cells"] | None = None,
    sees_target: bool,
    prompt: Bool[Tensor, "rows length"] | None,
    cache: PromptCache | None,
) -> Float[Tensor, "*cells d_model"]:
    """``states_at`` of a network whose prompt sees the target or not.

    Args:
        trunk: The trunk.
        input_ids: Ids of the rows; with a cache those of the prompts, then those of the targets.
        attention_mask: As in :class:`Trunk`.
        position_ids: As in :class:`Trunk`.
        positions: As in :func:`states_at`.
        sees_target: The network's ``prompt_sees_target``.
        prompt: True at the tokens of the prompt, shape (rows, length).
        cache: The states of the prompts.

    Raises:
        ValueError: If a prompt that sees the target is separated from it, or another one is not.
    """
    if sees_target != (prompt is None and cache is None) or (prompt is not None and cache is not None):
        raise ValueError(
            f"a network with prompt_sees_target={sees_target} is called "
            f"{'without' if sees_target else 'with one of'} the arguments prompt and cache"
        )
    if cache is not None:
        return states_at(trunk, positions, input_ids, attention_mask, position_ids, cache=cache)
    mask = attention_mask if prompt is None else prompt_mask(prompt, attention_mask)
    return states_at(trunk, positions, input_ids, mask, position_ids)


def check_hidden(
    hidden: Float[Tensor, "*cells d_model"], input_ids: Int[Tensor, "*cells"], trunk: object
) -> Float[Tensor, "*cells d_model"]:
    """The hidden states that a trunk gave for a batch, if they have the shape that was announced.

    Args:
        hidden: What the trunk returned.
        input_ids: What it was called with, shape (batch, length), or the cells that were wanted, (cells,).
        trunk: The trunk.

    Returns:
        ``hidden``.

    Raises:
        ValueError: If its output has another shape; names ``model.trunk``, its class, and both shapes.
    """
    width: int = getattr(trunk, "d_model")  # noqa: B009  # an nn.Module has any attribute
    if hidden.shape != (*input_ids.shape, width):
        raise ValueError(
            f"{_name(trunk)} gave hidden states of shape {tuple(hidden.shape)} for ids of shape "
            f"{tuple(input_ids.shape)}; with its d_model={width} they have the shape "
            f"{(*input_ids.shape, width)}"
        )
    return hidden


def _name(trunk: object) -> str:
    return f"{KEY} ({type(trunk).__module__}.{type(trunk).__qualname__})"
