"""The network: a bidirectional transformer with heads for the operations and for their tokens.

The trunk does not see the time. It shifts and scales the hidden states before the heads, by functions that
start at zero (adaLN-zero), so that one evaluation of the trunk serves every time: a sampler may read the
rates at several times, choose the time of the next edit from them, and then read its token.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from xlm.modules import PromptCache, Readout, RotaryTransformer, TimestepEmbedding, Trunk, read_tokens
from xlm.modules.compiling import uncompiled
from xlm.modules.hub import HubModel
from xlm.modules.trunk import call_trunk, check_prompt, choose_trunk
from xlm_editflow.types_editflow import NUM_OPERATIONS, ChooseTime, EditFlowOutput, OperationsAt


# Copied from xlm_did.model_did.TimeModulation
class TimeModulation(nn.Module):
    """x (1 + scale) + shift, both linear in an embedding of log u.

    log u is what the posterior of the missing tokens, with weights A_n u^n, is a softmax in.

    Args:
        d_model: Width of the hidden states.
        d_condition: Width of the embedding.
    """

    def __init__(self, *, d_model: int, d_condition: int) -> None:
        super().__init__()
        self.embedding = TimestepEmbedding(d_condition)
        self.modulation = nn.Linear(d_condition, 2 * d_model)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, hidden: Float[Tensor, "*cells d_model"], time: Float64[Tensor, "*#cells"]
    ) -> Float[Tensor, "*cells d_model"]:
        """Hidden states at their times."""
        log_time = time.clamp(min=torch.finfo(time.dtype).tiny).log()
        modulation: Tensor = self.modulation(F.silu(self.embedding(log_time)))
        shift, scale = modulation.chunk(2, dim=-1)
        return hidden * (1 + scale) + shift


class EditFlow(
    nn.Module,
    HubModel,
    library_name="xlm-editflow",
    tags=["edit-flow", "discrete-flow-matching", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2506.09018",
):
    """Network of edit flows (Havasi et al. 2025, arXiv:2506.09018).

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        trunk: The network below the heads, see :class:`xlm.modules.Trunk`; instead of the sizes that follow.
            None for a :class:`xlm.modules.RotaryTransformer` of these sizes.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        d_ff: Width of the inner layers; None for 4 * d_model.
        d_condition: Width of the embedding of the time.
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
        d_condition: int = 128,
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
        width = self.transformer.d_model
        self.time_modulation = TimeModulation(d_model=width, d_condition=d_condition)
        self.operation_head = nn.Linear(width, NUM_OPERATIONS)
        self.substitution = nn.Linear(width, width)
        self.token_head = nn.Linear(width, vocab_size, bias=False)
        for layer in (self.operation_head, self.substitution, self.token_head):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.operation_head.bias)
        nn.init.zeros_(self.substitution.bias)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"] | None = None,
        position_ids: Int[Tensor, "rows length"] | None = None,
        *,
        time: Float64[Tensor, " rows"] | ChooseTime,
        insert_at: Int[Tensor, " insertions"],
        substitute_at: Int[Tensor, " substitutions"],
        readout: Readout[Any] | None = None,
        prompt: Bool[Tensor, "rows length"] | None = None,
        cache: PromptCache | None = None,
    ) -> EditFlowOutput:
        """Scores of the operations in each column, and of tokens at some of them.

        Args:
            input_ids: Rows, shape (rows, length).
            attention_mask: True at real tokens, shape (rows, length); None if there is no padding.
            position_ids: Position of each token in the text, shape (rows, length): the columns need not be in
                the order of the text. By default they are.
            time: u of each row, shape (rows,), or a function that gives it for the operation logits at any
                times.
            insert_at: Columns into whose slots tokens may be inserted, as indices into the rows * length
                cells, shape (insertions,).
            substitute_at: Columns whose tokens may be substituted, shape (substitutions,).
            readout: What to make of the hidden states of these cells and the token head instead of logits.
            prompt: True at the tokens of the prompt, shape (rows, length); with prompt_sees_target=False
                only, which requires it or a cache.
            cache: States of the prompts: an empty one and the prompts alone first, then all other columns.

        Returns:
            Token logits of insertions and then of substitutions, shape (insertions + substitutions, vocab),
            or in their place what ``readout`` gives; operation logits, shape (rows, length, 3).
        """
        hidden = call_trunk(
            self.transformer,
            input_ids,
            attention_mask,
            position_ids,
            sees_target=self.prompt_sees_target,
            prompt=prompt,
            cache=cache,
        )

        def operations_at(times: Tensor) -> Tensor:
            logits: Tensor = self.operation_head(self.time_modulation(hidden, times.unsqueeze(1)))
            return logits

        time = _choose(time, operations_at) if callable(time) else time
        hidden = self.time_modulation(hidden, time.unsqueeze(1))
        operation_logits: Tensor = self.operation_head(hidden)
        cells = hidden.flatten(0, 1)
        inserted, substituted = (torch.index_select(cells, 0, at) for at in (insert_at, substitute_at))
        states = torch.cat((inserted, substituted + self.substitution(substituted)))
        token_logits = read_tokens(states, self.token_head, readout)
        return EditFlowOutput(token_logits=token_logits, operation_logits=operation_logits)


@uncompiled  # a sampler's draws are not for a compiler
def _choose(choose: ChooseTime, operations_at: OperationsAt) -> Tensor:
    return choose(operations_at)
