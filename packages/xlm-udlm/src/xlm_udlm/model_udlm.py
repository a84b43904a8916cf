"""The networks: token logits of noisy rows, conditioned on the time, from one of two backbones.

Unlike MASK, noise is not visible: how much of a row to trust depends on t even for the same x_t, so a
network is conditioned on the time by default. Without it the bound holds, but its minimum is above the
entropy.

The logits are raw. Which tokens a cell can hold is enforced by the loss and the samplers, for any network.
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules import (
    ConditionedTrunk,
    DiT,
    Readout,
    RotaryTransformer,
    TimestepEmbedding,
    Trunk,
    read_tokens,
)
from xlm.modules.hub import HubModel
from xlm.modules.trunk import check_condition, choose_trunk, states_at, takes


class UDLMRotary(
    nn.Module,
    HubModel,
    library_name="xlm-udlm",
    tags=["uniform-state-diffusion", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2412.10193",
):
    """Uniform-state diffusion network on the plain rotary transformer.

    The time is an embedding of the total noise -log alpha(t), which is added to those of the tokens. Small
    networks of this kind learn to look up tokens in fewer steps than a :class:`UDLMDiT`.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        trunk: The network below the head, with an ``embedding`` and the argument ``embedded``; instead of the
            sizes that follow. None for a :class:`xlm.modules.RotaryTransformer` of these sizes.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        d_ff: Width of the inner layers; None for 4 * d_model.
        dropout: Probability of dropping an entry of a block's update, in training.
        activation: Of the blocks: "gelu" (tanh form), "gelu_erf" or "relu".
        rotary_dim: Coordinates of each head to rotate, even; None for all.
        time_conditioning: Whether the network is conditioned on the noise.

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
        time_conditioning: bool = True,
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
        embed(self.transformer, torch.zeros(1, 0, dtype=torch.int64), None, None, None)
        self.time_conditioning = time_conditioning
        self.noise_embedding = TimestepEmbedding(self.transformer.d_model) if time_conditioning else None
        self.token_head = nn.Linear(self.transformer.d_model, vocab_size, bias=False)
        nn.init.normal_(self.token_head.weight, std=0.02)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None = None,
        noise: Float[Tensor, " rows"] | None = None,
        position_ids: Int[Tensor, "rows length"] | None = None,
        *,
        positions: Int[Tensor, " cells"] | None = None,
        readout: Readout[Any] | None = None,
        blend_ids: Int[Tensor, "cells tokens"] | None = None,
        blend_weights: Float[Tensor, "cells tokens"] | None = None,
    ) -> Any:
        """Token logits; the arguments are those of :meth:`UDLMDiT.forward`."""
        embedded = embed(self.transformer, input_ids, positions, blend_ids, blend_weights)
        if self.noise_embedding is not None:
            embedded = embedded + self.noise_embedding(require_noise(noise)).unsqueeze(1)
        hidden = states_at(
            self.transformer, positions, input_ids, attention_mask, position_ids, embedded=embedded
        )
        return read_tokens(hidden, self.token_head, readout)


class UDLMDiT(
    nn.Module,
    HubModel,
    library_name="xlm-udlm",
    tags=["uniform-state-diffusion", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2412.10193",
):
    """Uniform-state diffusion network on the diffusion transformer, as published (arXiv:2412.10193).

    The output head has a bias and starts at zero, so that the untrained network gives every token the same
    probability. The input for the time is the total noise -log alpha(t); without time conditioning the
    modulation stays in the network, with the condition of zero noise for every row.

    Trained by :class:`xlm_udlm.UDLMLoss`, its softmax at a cell is the prediction from the *other* cells (the
    leave-one-out posterior), not that of a denoiser: see :mod:`xlm_udlm.posterior_udlm`.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        trunk: The network below the head, see :class:`xlm.modules.ConditionedTrunk`; instead of the sizes
            that follow. None for a :class:`xlm.modules.DiT` of these sizes.
        noise_embedding: Makes the condition of the noise; None for a
            :class:`xlm.modules.TimestepEmbedding` of the trunk's d_condition.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        d_condition: Width of the condition.
        d_ff: Width of the inner layers; None for 4 * d_model.
        dropout: Probability of dropping an entry of a block's update, in training.
        rotary_dim: Coordinates of each head to rotate, even; None for all.
        time_conditioning: Whether the network is conditioned on the noise.

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
        time_conditioning: bool = True,
    ) -> None:
        super().__init__()
        self.time_conditioning = time_conditioning
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
        self.token_head = nn.Linear(self.transformer.d_model, vocab_size)
        nn.init.zeros_(self.token_head.weight)
        nn.init.zeros_(self.token_head.bias)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None = None,
        noise: Float[Tensor, " rows"] | None = None,
        position_ids: Int[Tensor, "rows length"] | None = None,
        *,
        positions: Int[Tensor, " cells"] | None = None,
        readout: Readout[Any] | None = None,
        blend_ids: Int[Tensor, "cells tokens"] | None = None,
        blend_weights: Float[Tensor, "cells tokens"] | None = None,
    ) -> Any:
        """Token logits.

        Args:
            input_ids: Token ids of x_t, shape (rows, length).
            attention_mask: True at real tokens, shape (rows, length); or True where a token (axis 1) sees
                another (axis 2), shape (rows, length, length), see :func:`xlm.modules.segment_mask`; None if
                there is no padding.
            noise: -log alpha(t) of each row, shape (rows,). Ignored without time conditioning.
            position_ids: Position of each token in the text, shape (rows, length); by default they are
                counted, see :class:`xlm.modules.RotaryTransformer`.
            positions: Cells to compute logits for, as indices into the rows * length cells, shape (cells,).
                None for all of them.
            readout: What to make of the hidden states of the cells and the head instead of logits.
            blend_ids: Of a softened row, the tokens whose embeddings are averaged at the cells ``positions``,
                shape (cells, tokens); the trunk has an ``embedding`` and accepts ``embedded``.
            blend_weights: Their weights, shape (cells, tokens).

        Returns:
            Logits, shape (cells, vocab) or, without ``positions``, (rows, length, vocab); or what ``readout``
            gives.

        Raises:
            ValueError: If the network is conditioned on time and there is no noise, or the trunk accepts no
                embeddings of a softened row.
        """
        if self.time_conditioning:
            noise = require_noise(noise)
        else:
            noise = torch.zeros(len(input_ids), device=input_ids.device)
        states: dict[str, Tensor] = {"condition": self.noise_embedding(noise)}
        if blend_ids is not None:
            states["embedded"] = embed(self.transformer, input_ids, positions, blend_ids, blend_weights)
        hidden = states_at(self.transformer, positions, input_ids, attention_mask, position_ids, **states)
        return read_tokens(hidden, self.token_head, readout)


def require_noise(noise: Float[Tensor, " rows"] | None) -> Float[Tensor, " rows"]:
    """The noise of each row, which a network conditioned on time reads.

    Raises:
        ValueError: If there is none.
    """
    if noise is None:
        raise ValueError("this network is conditioned on time and needs the noise of each row")
    return noise


def embed(
    trunk: object,
    input_ids: Int[Tensor, "rows length"],
    positions: Int[Tensor, " cells"] | None,
    blend_ids: Int[Tensor, "cells tokens"] | None,
    blend_weights: Float[Tensor, "cells tokens"] | None,
) -> Float[Tensor, "rows length d_model"]:
    """Embeddings of the tokens, at the cells of a softened row averages.

    Raises:
        ValueError: If the trunk has no ``embedding`` or does not accept ``embedded``.
    """
    embedding = getattr(trunk, "embedding", None)
    if not isinstance(embedding, nn.Embedding) or not takes(trunk, "embedded"):
        raise ValueError(
            f"model.trunk ({type(trunk).__name__}) has no embedding or does not accept embedded, which "
            "UDLMRotary and a curriculum require: use UDLMDiT and set the collator's curriculum=null"
        )
    table: Tensor = embedding(input_ids)
    if positions is None or blend_ids is None or blend_weights is None:
        return table
    averages = torch.einsum("ct,ctd->cd", blend_weights.to(table.dtype), embedding(blend_ids))
    return table.flatten(0, 1).index_copy(0, positions, averages).view_as(table)
