"""The networks: token logits of noisy blocks, from one of two backbones, with the same forward signature.

A network knows nothing of blocks: the attention mask of its call says who sees whom
(:mod:`xlm_bd3lm.streams_bd3lm`), or a cache holds what is seen. Neither network is conditioned on the time,
as the best prediction of a masked cell given the visible tokens does not depend on it (Zheng et al. 2024,
arXiv:2409.02908, section 3).

The logits are raw. That MASK has probability 0 and that unmasked cells are copied (SUBS; Sahoo et al. 2024,
arXiv:2406.07524, section 3) is enforced by the loss and the samplers, for any network.
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from xlm.modules import (
    BlockCache,
    ConditionedTrunk,
    DiT,
    PiecewiseMask,
    Readout,
    RotaryTransformer,
    TimestepEmbedding,
    Trunk,
    read_tokens,
    takes_piecewise_mask,
)
from xlm.modules.hub import HubModel
from xlm.modules.trunk import check_condition, choose_trunk, states_at, takes


class BD3LMRotary(
    nn.Module,
    HubModel,
    library_name="xlm-bd3lm",
    tags=["block-diffusion-language-model", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2503.09573",
):
    """Block diffusion network on the plain rotary transformer or another trunk.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        trunk: The network below the head, see :class:`xlm.modules.Trunk`; instead of the sizes that follow.
            None for a :class:`xlm.modules.RotaryTransformer` of these sizes.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        d_ff: Width of the inner layers; None for 4 * d_model.
        dropout: Probability of dropping an entry of a block's update, in training.
        activation: Of the blocks: "gelu" (tanh form), "gelu_erf" or "relu".
        rotary_dim: Coordinates of each head to rotate, even; None for all.

    Raises:
        ValueError: If neither a trunk nor its sizes are given, or both, or the trunk does not fit.
    """

    takes_readout = True

    def __init__(
        self,
        *,
        vocab_size: int,
        trunk: Trunk | None = None,
        d_model: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.0,
        activation: Literal["gelu", "gelu_erf", "relu"] = "gelu",
        rotary_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.transformer = choose_trunk(
            trunk,
            partial(RotaryTransformer, vocab_size=vocab_size),
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            d_ff=d_ff,
            dropout=dropout,
            activation=activation,
            rotary_dim=rotary_dim,
        )
        self.takes_piecewise_mask = takes_piecewise_mask(self.transformer)
        self._takes_cache = takes(self.transformer, "cache")
        self.token_head = nn.Linear(self.transformer.d_model, vocab_size, bias=False)
        nn.init.normal_(self.token_head.weight, std=0.02)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"]
        | Bool[Tensor, "rows length keys"]
        | PiecewiseMask
        | None = None,
        position_ids: Int[Tensor, "rows length"] | None = None,
        *,
        positions: Int[Tensor, " places"] | None = None,
        readout: Readout[Any] | None = None,
        cache: BlockCache | None = None,
    ) -> Any:
        """Token logits; the arguments are those of :meth:`BD3LMDiT.forward`."""
        if cache is not None and not self._takes_cache:
            raise _no_cache(self.transformer)
        states = {} if cache is None else {"cache": cache}
        hidden = states_at(self.transformer, positions, input_ids, attention_mask, position_ids, **states)
        return read_tokens(hidden, self.token_head, readout)


class BD3LMDiT(
    nn.Module,
    HubModel,
    library_name="xlm-bd3lm",
    tags=["block-diffusion-language-model", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2503.09573",
):
    """Block diffusion network on the diffusion transformer, as published (arXiv:2503.09573).

    As in the authors' code, the output head has a bias and starts at zero, so that the untrained network
    gives every token the same probability, and the modulation stays in the network, with the condition of
    zero noise for every row.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        trunk: The network below the head, see :class:`xlm.modules.ConditionedTrunk`; instead of the sizes
            that follow. None for a :class:`xlm.modules.DiT` of these sizes.
        noise_embedding: Makes the condition of zero noise; None for a
            :class:`xlm.modules.TimestepEmbedding` of the trunk's d_condition.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        d_condition: Width of the condition.
        d_ff: Width of the inner layers; None for 4 * d_model.
        dropout: Probability of dropping an entry of a block's update, in training.
        rotary_dim: Coordinates of each head to rotate, even; None for all.

    Raises:
        ValueError: If neither a trunk nor its sizes are given, or both, or the trunk does not fit.
    """

    takes_readout = True

    def __init__(
        self,
        *,
        vocab_size: int,
        trunk: ConditionedTrunk | None = None,
        noise_embedding: TimestepEmbedding | None = None,
        d_model: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        d_condition: int = 128,
        d_ff: int | None = None,
        dropout: float = 0.0,
        rotary_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.noise_embedding = noise_embedding or TimestepEmbedding(
            getattr(trunk, "d_condition", d_condition)
        )
        self.transformer = choose_trunk(
            trunk,
            partial(DiT, vocab_size=vocab_size),
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            d_condition=d_condition,
            d_ff=d_ff,
            dropout=dropout,
            rotary_dim=rotary_dim,
        )
        check_condition(self.transformer, self.noise_embedding.d_condition)
        self.takes_piecewise_mask = takes_piecewise_mask(self.transformer)
        self._takes_cache = takes(self.transformer, "cache")
        self.token_head = nn.Linear(self.transformer.d_model, vocab_size)
        nn.init.zeros_(self.token_head.weight)
        nn.init.zeros_(self.token_head.bias)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"]
        | Bool[Tensor, "rows length keys"]
        | PiecewiseMask
        | None = None,
        position_ids: Int[Tensor, "rows length"] | None = None,
        *,
        positions: Int[Tensor, " places"] | None = None,
        readout: Readout[Any] | None = None,
        cache: BlockCache | None = None,
    ) -> Any:
        """Token logits.

        Args:
            input_ids: Token ids, shape (rows, length): both streams of the rows, or with a cache the tokens
                of one block.
            attention_mask: True where a token (axis 1) sees another (axis 2), shape (rows, length, keys),
                the keys being those in the cache and the tokens of the call; or the same in pieces, if
                ``takes_piecewise_mask``; or True at real tokens, shape (rows, length), which all see each
                other; None if there is no padding.
            position_ids: Position of each token in the text, shape (rows, length); by default they are
                counted, see :class:`xlm.modules.RotaryTransformer`.
            positions: Cells to compute logits for, as indices into the rows * length columns, shape
                (places,). None for all of them.
            readout: What to make of the hidden states of the cells and the head instead of logits.
            cache: What all tokens of the call see too; they are added to it, but not to a peek of it.

        Returns:
            Logits, shape (places, vocab) or, without ``positions``, (rows, length, vocab); or what
            ``readout`` gives.

        Raises:
            ValueError: If there is a cache and the trunk takes none.
        """
        if cache is not None and not self._takes_cache:
            raise _no_cache(self.transformer)
        condition: Tensor = self.noise_embedding(torch.zeros(len(input_ids), device=input_ids.device))
        states: dict[str, Any] = {"condition": condition}
        if cache is not None:
            states["cache"] = cache
        hidden = states_at(self.transformer, positions, input_ids, attention_mask, position_ids, **states)
        return read_tokens(hidden, self.token_head, readout)


def _no_cache(trunk: object) -> ValueError:
    return ValueError(
        f"model.trunk ({type(trunk).__name__}) takes no cache of finished blocks: set "
        "predictor.cache=false, and they are evaluated anew with each block"
    )
