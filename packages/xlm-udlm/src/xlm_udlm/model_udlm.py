"""The network: token logits of noisy rows, conditioned on the time.

Unlike MASK, noise is not visible: how much of a row to trust depends on t even for the same x_t, so the
network is conditioned on the time by default. Without it the bound holds, but its minimum is above the
entropy.

The logits are raw. Which tokens a cell can hold is enforced by the loss and the samplers, for any network.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules import ConditionedTrunk, DiT, Readout, TimestepEmbedding, read_tokens
from xlm.modules.hub import HubModel
from xlm.modules.trunk import check_condition, check_hidden, choose_trunk


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

        Returns:
            Logits, shape (cells, vocab) or, without ``positions``, (rows, length, vocab); or what ``readout``
            gives.

        Raises:
            ValueError: If the network is conditioned on time and there is no noise.
        """
        if not self.time_conditioning:
            noise = torch.zeros(len(input_ids), device=input_ids.device)
        elif noise is None:
            raise ValueError("this network is conditioned on time and needs the noise of each row")
        condition: Tensor = self.noise_embedding(noise)
        hidden: Tensor = self.transformer(input_ids, attention_mask, position_ids, condition=condition)
        check_hidden(hidden, input_ids, self.transformer)
        return read_tokens(hidden, self.token_head, positions, readout)
