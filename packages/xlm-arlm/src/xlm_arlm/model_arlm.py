"""The network: a causal transformer with a linear head for the next token.

The head is computed only where requested, and a readout takes its place in training: at a vocabulary of
50,000 the logits of a batch take gigabytes, more than everything else together
(:func:`xlm.modules.linear_cross_entropy`).
"""

from functools import partial
from typing import Any, Literal

from jaxtyping import Bool, Int
from torch import Tensor, nn

from xlm.modules import CausalTrunk, KeyValueCache, Readout, RotaryTransformer, read_tokens
from xlm.modules.hub import HubModel
from xlm.modules.trunk import check_causal, choose_trunk, states_at


class ARLM(
    nn.Module,
    HubModel,
    library_name="xlm-arlm",
    tags=["autoregressive-language-model", "text-generation"],
    license="mit",
):
    """Autoregressive language model: p(x) = prod_i p(x_i | x_1, ..., x_{i-1}).

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` keep the weights as safetensors beside a
    ``config.json`` with the arguments below.

    Args:
        vocab_size: Number of token ids, special tokens included.
        trunk: The network below the head, see :class:`xlm.modules.CausalTrunk`; instead of the sizes that
            follow. None for a causal :class:`xlm.modules.RotaryTransformer` of these sizes.
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
        trunk: CausalTrunk | None = None,
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
            partial(RotaryTransformer, vocab_size=vocab_size, causal=True),
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            d_ff=d_ff,
            dropout=dropout,
            activation=activation,
            rotary_dim=rotary_dim,
        )
        check_causal(self.transformer)
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
        cache: KeyValueCache | None = None,
    ) -> Any:
        """Scores of the next token.

        Args:
            input_ids: Token ids, shape (rows, length); with a cache, those that follow what it holds.
            attention_mask: True at real tokens, shape (rows, length); or, for packed rows, True where a token
                (axis 1) sees another (axis 2), shape (rows, length, length). None if no padding stands left
                of a real token. No token attends to its right, independent of the mask.
            position_ids: Position of each token, shape (rows, length); by default the number of real tokens
                on its left.
            positions: Cells to compute the head for, as indices into the rows * length cells, shape (cells,).
                None for all of them.
            readout: What to make of the hidden states of the cells and the head instead of logits.
            cache: Keys and values of the tokens so far; those of ``input_ids`` are appended to it.

        Returns:
            Logits of the next token, shape (cells, vocab) or, without ``positions``, (rows, length, vocab);
            or what ``readout`` gives.

        Raises:
            ValueError: If ids are not of the vocabulary (on the CPU).
        """
        hidden = states_at(self.transformer, positions, input_ids, attention_mask, position_ids, cache=cache)
        return read_tokens(hidden, self.token_head, readout)
