"""The networks: token logits of noisy rows, from one of two backbones, with the same forward signature.

The best prediction of a masked cell given the visible tokens does not depend on the time (Zheng et al. 2024,
arXiv:2409.02908, section 3), so neither network is conditioned on it by default.

The logits are raw. That MASK has probability 0 and that unmasked cells are copied (SUBS; Sahoo et al. 2024,
arXiv:2406.07524, section 3) is enforced by the loss and the samplers, for any network.
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules import (
    ConditionedTrunk,
    DiT,
    PromptCache,
    Readout,
    RotaryTransformer,
    TimestepEmbedding,
    Trunk,
    read_tokens,
)
from xlm.modules.hub import HubModel
from xlm.modules.trunk import call_trunk, check_condition, check_prompt, choose_trunk, states_at


class MDLMRotary(
    nn.Module,
    HubModel,
    library_name="xlm-mdlm",
    tags=["masked-diffusion-language-model", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2406.07524",
):
    """Masked diffusion network that never sees the time, on the plain rotary transformer or another trunk.

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
        prompt_sees_target: Whether the tokens of the prompt attend to the target. False lets the predictor
            compute the prompt once per text; training, likelihood and sampling all follow it.

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
        prompt_sees_target: bool = True,
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
        check_prompt(self.transformer, sees_target=prompt_sees_target)
        self.prompt_sees_target = prompt_sees_target
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
        prompt: Bool[Tensor, "rows length"] | None = None,
        cache: PromptCache | None = None,
    ) -> Any:
        """Token logits; the arguments but the last two are those of :meth:`MDLMDiT.forward`.

        Args:
            input_ids: Token ids with MASK at the cells to predict.
            attention_mask: What each token sees.
            noise: Ignored.
            position_ids: Position of each token in the text.
            positions: Cells to compute logits for.
            readout: What to make of the hidden states of the cells and the head instead of logits.
            prompt: True at the tokens of the prompt, shape (rows, length); with prompt_sees_target=False
                only, which requires it or a cache.
            cache: States of the prompts: an empty one and the prompts alone first, then all other columns.
        """
        hidden = call_trunk(
            self.transformer,
            input_ids,
            attention_mask,
            position_ids,
            positions=positions,
            sees_target=self.prompt_sees_target,
            prompt=prompt,
            cache=cache,
        )
        return read_tokens(hidden, self.token_head, readout)


class MDLMDiT(
    nn.Module,
    HubModel,
    library_name="xlm-mdlm",
    tags=["masked-diffusion-language-model", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2406.07524",
):
    """Masked diffusion network on the diffusion transformer, as published (arXiv:2406.07524).

    As in the authors' code, the output head has a bias and starts at zero, so that the untrained network
    gives every token the same probability; the input for the time is the total noise -log alpha(t); and
    without time conditioning the modulation stays in the network, with the condition of zero noise for every
    row.

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
        time_conditioning: bool = False,
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
            input_ids: Token ids with MASK at the cells to predict, shape (rows, length).
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
            raise ValueError(
                "this network is conditioned on time, but its batch has none: give MDLMLikelihoodCollator "
                "time_conditioning=True and the noise schedule of the training"
            )
        condition: Tensor = self.noise_embedding(noise)
        hidden = states_at(
            self.transformer, positions, input_ids, attention_mask, position_ids, condition=condition
        )
        return read_tokens(hidden, self.token_head, readout)
