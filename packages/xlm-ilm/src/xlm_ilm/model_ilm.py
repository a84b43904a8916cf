"""The network: a bidirectional transformer that scores insertions, and a head for the stop decision.

It sees neither time nor noise level: how much is missing has to be read off the row itself. Hidden states go
through a last norm before the token head (the published code has none there).
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules import PromptCache, Readout, RotaryTransformer, Trunk, read_tokens
from xlm.modules.hub import HubModel
from xlm.modules.trunk import call_trunk, check_prompt, choose_trunk
from xlm_ilm.types_ilm import ILMOutput

Head = Literal["stop", "length"]


class StopHead(nn.Module):
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


class ILM(
    nn.Module,
    HubModel,
    library_name="xlm-ilm",
    tags=["insertion-language-model", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/2505.05755",
):
    """Insertion language model (Patel et al. 2025, arXiv:2505.05755).

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        trunk: The network below the heads, see :class:`xlm.modules.Trunk`; instead of the sizes that follow.
            None for a :class:`xlm.modules.RotaryTransformer` of these sizes.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        d_ff: Width of the inner layers, of the stop head beside any trunk, too; None for 4 * d_model.
        dropout: Probability of dropping an entry of a block's update, in training.
        activation: Of the blocks: "gelu" (tanh form), "gelu_erf" or "relu".
        rotary_dim: Coordinates of each head to rotate, even; None for all.
        head: What is read at CLS. "stop": whether anything is missing (class 0: nothing). "length": how many
            tokens are missing.
        num_length_classes: Classes of the length head, one more than the largest number of missing tokens.
        prompt_sees_target: Whether the tokens of the prompt attend to the target. False lets the predictor
            compute the prompt once per text; training, likelihood and sampling all follow it.

    Raises:
        ValueError: If num_length_classes is missing for the length head, or given without it; if neither
            a trunk nor its sizes are given, or both, or the trunk does not fit.
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
        head: Head = "stop",
        num_length_classes: int | None = None,
        prompt_sees_target: bool = True,
    ) -> None:
        super().__init__()
        if (head == "length") != (num_length_classes is not None):
            raise ValueError(
                f"head='length' needs num_length_classes and head='stop' has none, "
                f"got head={head!r} and num_length_classes={num_length_classes}"
            )
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
        self.stop_head = StopHead(
            d_model=width,
            d_ff=4 * width if d_ff is None else d_ff,
            num_classes=2 if num_length_classes is None else num_length_classes,
        )
        for name, parameter in (*self.token_head.named_parameters(), *self.stop_head.named_parameters()):
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"] | None = None,
        position_ids: Int[Tensor, "rows length"] | None = None,
        *,
        positions: Int[Tensor, " cells"] | None = None,
        readout: Readout[Any] | None = None,
        prompt: Bool[Tensor, "rows length"] | None = None,
        cache: PromptCache | None = None,
    ) -> ILMOutput:
        """Scores of insertions and of stopping.

        Args:
            input_ids: Rows that begin with CLS, shape (rows, length).
            attention_mask: True at real tokens, shape (rows, length); None if there is no padding.
            position_ids: Position of each token in the text, shape (rows, length): the columns need not be in
                the order of the text, except that CLS is the first. By default they are.
            positions: Cells to compute token logits for, as indices into the rows * length cells,
                shape (cells,). None for all of them.
            readout: What to make of the hidden states of the cells and the token head instead of logits.
            prompt: True at the tokens of the prompt, shape (rows, length); with prompt_sees_target=False
                only, which requires it or a cache.
            cache: States of the prompts: an empty one and the prompts alone first, then all other columns.

        Returns:
            Token logits, shape (cells, vocab) or, without ``positions``, (rows, length, vocab), or in their
            place what ``readout`` gives; stop logits, shape (rows, classes).
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
        stop_logits: Tensor = self.stop_head(of_cls)
        token_logits = read_tokens(of_cells, self.token_head, readout)
        return ILMOutput(token_logits=token_logits, stop_logits=stop_logits)
