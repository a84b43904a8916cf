"""The network: a bidirectional transformer that predicts the tokens of masked cells.

It sees neither time nor mask rate: both can be read off the row, and the best prediction given the visible
tokens does not depend on them.
"""

from functools import partial
from typing import Any, Literal

from jaxtyping import Bool, Int
from torch import Tensor, nn

from xlm.modules import PromptCache, Readout, RotaryTransformer, Trunk, read_tokens
from xlm.modules.hub import HubModel
from xlm.modules.trunk import call_trunk, check_prompt, choose_trunk


class MLM(
    nn.Module,
    HubModel,
    library_name="xlm-mlm",
    tags=["masked-language-model", "text-generation"],
    license="mit",
    paper_url="https://arxiv.org/abs/1904.09324",
):
    """Masked language model for generation (Ghazvininejad et al. 2019, arXiv:1904.09324).

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
        position_ids: Int[Tensor, "rows length"] | None = None,
        *,
        positions: Int[Tensor, " cells"] | None = None,
        readout: Readout[Any] | None = None,
        prompt: Bool[Tensor, "rows length"] | None = None,
        cache: PromptCache | None = None,
    ) -> Any:
        """Token logits.

        Args:
            input_ids: Token ids with MASK at the cells to predict, shape (rows, length).
            attention_mask: True at real tokens, shape (rows, length); or True where a token (axis 1) sees
                another (axis 2), shape (rows, length, length), see :func:`xlm.modules.segment_mask`; None if
                there is no padding.
            position_ids: Position of each token in the text, shape (rows, length); by default they are
                counted, see :class:`xlm.modules.RotaryTransformer`.
            positions: Cells to compute logits for, as indices into the rows * length cells, shape (cells,).
                None for all of them.
            readout: What to make of the hidden states of the cells and the head instead of logits.
            prompt: True at the tokens of the prompt, shape (rows, length); with prompt_sees_target=False
                only, which requires it or a cache.
            cache: States of the prompts: an empty one and the prompts alone first, then all other columns.

        Returns:
            Logits, shape (cells, vocab) or, without ``positions``, (rows, length, vocab); or what ``readout``
            gives.
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
