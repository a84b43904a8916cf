"""The network: a bidirectional transformer with a head for insertions and one for the number that is missing.

The number of missing tokens does not need the time, which enters its distribution in closed form
(:mod:`xlm_did.missing_did`). The distribution of an insertion does, where texts differ in length: the time
shifts and scales the hidden states before the token head, by functions that start at zero (adaLN-zero), and
nothing before. Where all texts (of a prompt) have one length, the row determines how many tokens are missing,
so the insertions do not depend on the time: ``reads_time=False``. One evaluation of the trunk thus serves
every time: a sampler reads the number first, chooses the time from it, and then reads the tokens.
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
from xlm_did.types_did import ChooseTime, DIDOutput


class LengthHead(nn.Module):
    """Residual tanh MLP and a linear classifier: W (x + W2 tanh(W1 LN(x) + b1) + b2).

    Args:
        d_model: Width of the hidden states.
        d_ff: Width of the inner layer.
        num_classes: Number of classes.
    """

    def __init__(self, *, d_model: int, d_ff: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)
        self.classifier = nn.Linear(d_model, num_classes, bias=False)

    def forward(self, hidden: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape classes"]:
        """Logits of the classes."""
        update: Tensor = self.outer(self.inner(self.norm(hidden)).tanh())
        logits: Tensor = self.classifier(hidden + update)
        return logits


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


class DID(
    nn.Module,
    HubModel,
    library_name="xlm-did",
    tags=["insertion-language-model", "discrete-diffusion", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2603.23507",
):
    """Network of insertion by reversed deletion (Ding et al. 2026, arXiv:2603.23507).

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        max_missing: The most tokens that can be missing: the longest target.
        trunk: The network below the heads, see :class:`xlm.modules.Trunk`; instead of the sizes that follow.
            None for a :class:`xlm.modules.RotaryTransformer` of these sizes.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        d_ff: Width of the inner layers, of the length head beside any trunk, too; None for 4 * d_model.
        d_condition: Width of the embedding of the time.
        reads_time: Whether the distribution of insertions depends on the time; not needed where all texts,
            or all texts of a prompt, have one length.
        dropout: Probability of dropping an entry of a block's update, in training.
        activation: Of the blocks: "gelu" (tanh form), "gelu_erf" or "relu".
        rotary_dim: Coordinates of each head to rotate, even; None for all.
        prompt_sees_target: Whether the tokens of the prompt attend to the target. False lets the predictor
            compute the prompt once per text; training, likelihood and sampling all follow it.

    Raises:
        ValueError: If max_missing is below 1; if neither a trunk nor its sizes are given, or both, or the
            trunk does not fit.
    """

    takes_readout = True

    def __init__(
        self,
        *,
        vocab_size: int,
        max_missing: int,
        trunk: Trunk | None = None,
        d_model: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        d_ff: int | None = None,
        d_condition: int = 128,
        reads_time: bool = True,
        dropout: float = 0.0,
        activation: Literal["gelu", "gelu_erf", "relu"] = "gelu",
        rotary_dim: int | None = None,
        prompt_sees_target: bool = True,
    ) -> None:
        super().__init__()
        if max_missing < 1:
            raise ValueError(f"max_missing must be at least 1, got {max_missing}")
        self.transformer = choose_trunk(
            trunk,
            partial(RotaryTransformer, vocab_size=vocab_size),
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            d_ff=d_ff if trunk is None else None,
            dropout=dropout,
            activation=activation,
            rotary_dim=rotary_dim,
        )
        check_prompt(self.transformer, sees_target=prompt_sees_target)
        self.prompt_sees_target = prompt_sees_target
        width = self.transformer.d_model
        self.token_head = nn.Linear(width, vocab_size, bias=False)
        self.length_head = LengthHead(
            d_model=width, d_ff=4 * width if d_ff is None else d_ff, num_classes=max_missing + 1
        )
        for name, parameter in (*self.token_head.named_parameters(), *self.length_head.named_parameters()):
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.time_modulation = TimeModulation(d_model=width, d_condition=d_condition) if reads_time else None

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"] | None = None,
        position_ids: Int[Tensor, "rows length"] | None = None,
        *,
        time: Float64[Tensor, " rows"] | ChooseTime,
        positions: Int[Tensor, " cells"] | None = None,
        readout: Readout[Any] | None = None,
        prompt: Bool[Tensor, "rows length"] | None = None,
        cache: PromptCache | None = None,
    ) -> DIDOutput:
        """Scores of insertions and of the number of missing tokens.

        Args:
            input_ids: Rows that begin with CLS, shape (rows, length).
            attention_mask: True at real tokens, shape (rows, length); None if there is no padding.
            position_ids: Position of each token in the text, shape (rows, length): the columns need not be in
                the order of the text, except that CLS is the first. By default they are.
            time: u of each row, shape (rows,), or a function that gives it for the length logits.
            positions: Cells to compute token logits for, as indices into the rows * length cells,
                shape (cells,). None for all of them.
            readout: What to make of the hidden states of the cells and the token head instead of logits.
            prompt: True at the tokens of the prompt, shape (rows, length); with prompt_sees_target=False
                only, which requires it or a cache.
            cache: States of the prompts: an empty one and the prompts alone first, then all other columns.

        Returns:
            Token logits, shape (cells, vocab) or, without ``positions``, (rows, length, vocab), or in their
            place what ``readout`` gives; length logits, shape (rows, max_missing + 1).
        """
        rows, length = input_ids.shape
        first = torch.arange(rows, device=input_ids.device) * length
        wanted = None if positions is None else torch.cat((first, positions))
        hidden = call_trunk(
            self.transformer,
            input_ids,
            attention_mask,
            position_ids,
            positions=wanted,
            sees_target=self.prompt_sees_target,
            prompt=prompt,
            cache=cache,
        )
        of_cls = hidden[:, 0] if positions is None else hidden[:rows]
        of_cells = hidden if positions is None else hidden[rows:]
        length_logits: Tensor = self.length_head(of_cls)
        time = _choose(time, length_logits) if callable(time) else time
        if self.time_modulation is not None:
            of_time = time.unsqueeze(1) if positions is None else time[positions // length]
            of_cells = self.time_modulation(of_cells, of_time)
        token_logits = read_tokens(of_cells, self.token_head, readout)
        return DIDOutput(token_logits=token_logits, length_logits=length_logits)


@uncompiled  # a sampler's draws are not for a compiler
def _choose(choose: ChooseTime, length_logits: Tensor) -> Tensor:
    return choose(length_logits)
