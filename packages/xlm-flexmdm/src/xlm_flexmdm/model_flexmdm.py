"""The network: a diffusion transformer with two heads, for masked tokens and for what is missing in between.

Both heads stand on the same hidden states. That of column k predicts the token k, if it is masked, and how
many tokens are absent in the slot right of k. The published network reads the slot left of a token at the
token, and the last slot at the first padding; here BOS reads the first, so padding is never attended.
"""

import math
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules import ConditionedTrunk, DiT, Readout, TimestepEmbedding, Trunk, read_tokens
from xlm.modules.hub import HubModel
from xlm.modules.trunk import check_condition, choose_trunk, states_at, takes
from xlm_flexmdm.types_flexmdm import FlexMDMOutput

Head = Literal["expectation", "distribution"]


class GapHead(nn.Module):
    """W gelu(W1 (norm(x) (1 + scale) + shift)), scale and shift being linear in the condition of the row.

    Args:
        d_model: Width of the hidden states.
        d_condition: Width of the condition.
        num_outputs: Width of the result.
    """

    def __init__(self, *, d_model: int, d_condition: int, num_outputs: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(d_condition, 2 * d_model)
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.inner = nn.Linear(d_model, d_model)
        self.outer = nn.Linear(d_model, num_outputs)
        # Whatever the time, the same modulation at the start (adaLN-zero).
        nn.init.zeros_(self.modulation.weight)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.modulation, self.inner, self.outer):
            nn.init.zeros_(layer.bias)

    def forward(
        self, hidden: Float[Tensor, "slots d_model"], condition: Float[Tensor, "slots d_condition"]
    ) -> Float[Tensor, "slots outputs"]:
        """Results, from the hidden state and the row's condition of each slot."""
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        inner: Tensor = self.inner(self.norm(hidden) * (1 + scale) + shift)
        outputs: Tensor = self.outer(F.gelu(inner, approximate="tanh"))
        return outputs


class FlexMDM(
    nn.Module,
    HubModel,
    library_name="xlm-flexmdm",
    tags=["masked-diffusion", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2509.01025",
):
    """Network of FlexMDM (Kim et al. 2025, arXiv:2509.01025).

    With z the result of the gap head in a slot and a = 1 - alpha(t) the probability that a token is absent,

        head="expectation":   g = a * max_length * softplus(z)
        head="distribution":  P(gap = n) = softmax_n(z_n + n log a) on 0..max_length,  g = sum_n n P(gap = n).

    The published heads are without a. With it g vanishes with a for t -> 1, as the true expectation does,
    and the likelihood bound is finite; without it, g stays above 0 and the bound is infinite.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        max_length: Longest target in tokens: the largest gap, and the scale of g.
        trunk: The network below the heads, see :class:`xlm.modules.ConditionedTrunk`; instead of the sizes
            that follow. One without a condition never sees the time, which reaches the gap head alone.
            None for a :class:`xlm.modules.DiT` of these sizes.
        time_embedding: Makes the condition of the time; None for a
            :class:`xlm.modules.TimestepEmbedding` of the trunk's d_condition, or of 128 if it has none.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        d_condition: Width of the embedding of the time.
        d_ff: Width of the inner layers; None for 4 * d_model.
        dropout: Probability of dropping an entry of a block's update, in training.
        rotary_dim: Coordinates of each attention head to rotate, even; None for all.
        head: "expectation" or "distribution", see above.

    Raises:
        ValueError: If head is neither of the two, or max_length is below 1; if neither a trunk nor its sizes
            are given, or both, or the trunk does not fit.
    """

    takes_readout = True

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        trunk: ConditionedTrunk | Trunk | None = None,
        time_embedding: TimestepEmbedding | None = None,
        d_model: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        d_condition: int = 128,
        d_ff: int | None = None,
        dropout: float = 0.0,
        rotary_dim: int | None = None,
        head: Head = "expectation",
    ) -> None:
        super().__init__()
        if head not in ("expectation", "distribution"):
            raise ValueError(f"head must be 'expectation' or 'distribution', got {head!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.max_length = max_length
        self.head = head
        self.time_embedding = time_embedding or TimestepEmbedding(getattr(trunk, "d_condition", d_condition))
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
        self.is_conditioned = takes(self.transformer, "condition")
        if self.is_conditioned:
            check_condition(self.transformer, self.time_embedding.d_condition)
        width = self.transformer.d_model
        self.token_head = nn.Linear(width, vocab_size)
        self.gap_head = GapHead(
            d_model=width,
            d_condition=self.time_embedding.d_condition,
            num_outputs=1 if head == "expectation" else max_length + 1,
        )
        nn.init.normal_(self.token_head.weight, std=0.02)
        nn.init.zeros_(self.token_head.bias)
        if head == "expectation":
            # softplus(z) max_length = 1 at the start, instead of max_length log 2 tokens in each slot.
            nn.init.constant_(self.gap_head.outer.bias, math.log(math.expm1(1 / max_length)))

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        time: Float[Tensor, " rows"],
        missing_chance: Float[Tensor, " rows"],
        attention_mask: Bool[Tensor, "rows length"] | None = None,
        *,
        token_positions: Int[Tensor, " cells"],
        slot_positions: Int[Tensor, " slots"],
        readout: Readout[Any] | None = None,
    ) -> FlexMDMOutput:
        """Distributions of masked tokens and of gaps.

        Args:
            input_ids: Rows of tokens and MASKs, shape (rows, length).
            time: Time input of each row, t or alpha(t), shape (rows,).
            missing_chance: a = 1 - alpha(t), passed on its own since it loses its digits in 1 - time for
                t -> 1, shape (rows,).
            attention_mask: True at real tokens, shape (rows, length); None if there is no padding.
            token_positions: Cells to compute token logits for, as indices into the rows * length columns,
                shape (cells,).
            slot_positions: Columns whose slot to compute g for, likewise, shape (slots,).
            readout: What to make of the hidden states of the cells and the token head instead of logits.

        Returns:
            Token logits (cells, vocab), or in their place what ``readout`` gives; g (slots,); and, with
            head="distribution", logits (slots, max_length + 1) of the gap lengths.
        """
        condition: Tensor = self.time_embedding(time)
        given = {"condition": condition} if self.is_conditioned else {}
        cells = torch.cat((token_positions, slot_positions))
        # Of texts without a prompt nearly all columns are wanted, and some of them twice.
        wanted = cells if 2 * len(cells) < input_ids.numel() else None
        hidden = states_at(self.transformer, wanted, input_ids, attention_mask, **given)
        states = hidden if wanted is not None else hidden.flatten(0, 1).index_select(0, cells)
        of_cells, of_slots = states.split((len(token_positions), len(slot_positions)))
        token_logits = read_tokens(of_cells, self.token_head, readout)
        row = slot_positions // input_ids.shape[1]
        outputs: Tensor = self.gap_head(of_slots, condition[row])
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        chance = missing_chance.to(outputs.dtype)[row]
        if self.head == "expectation":
            return FlexMDMOutput(token_logits, chance * self.max_length * F.softplus(outputs[:, 0]), None)
        lengths = torch.arange(self.max_length + 1, device=outputs.device, dtype=outputs.dtype)
        # A chance of 0 by rounding would give 0 * inf at length 0.
        log_chance = chance.clamp(min=torch.finfo(chance.dtype).tiny).log()
        gap_logits = outputs + lengths * log_chance.unsqueeze(1)
        # A sum, not a matrix product, which autocast would round to bfloat16.
        return FlexMDMOutput(token_logits, (gap_logits.softmax(-1) * lengths).sum(-1), gap_logits)
