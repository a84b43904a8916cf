"""A diffusion transformer: bidirectional, with rotary positions, modulated by a condition such as the time.

Each block shifts, scales and gates its two updates by linear functions of the condition c that start at zero
(adaLN-zero; Peebles and Xie 2022, arXiv:2212.09748):

    x <- x + gate_1 * attention(modulate(norm(x), shift_1, scale_1))
    x <- x + gate_2 * mlp(modulate(norm(x), shift_2, scale_2)),      modulate(y, b, a) = y * (1 + a) + b.

The residual is the stream x itself, not its modulated norm, as in the authors' code of masked diffusion
(Sahoo et al. 2024, arXiv:2406.07524). The parameters are laid out as there: attention projections and norms
without bias, MLP with bias and, by default, tanh GELU, the six parts of the modulation in the order shift_1,
scale_1, gate_1, shift_2, scale_2, gate_2. The names correspond as follows (left: there, right: here):

    vocab_embed.embedding                   embedding.weight
    blocks.i.norm1, norm2                   blocks.i.attention_norm, feed_forward_norm
    blocks.i.attn_qkv, attn_out             blocks.i.attention.qkv, attention.output
    blocks.i.mlp.0, mlp.2                   blocks.i.feed_forward.input, feed_forward.output
    blocks.i.adaLN_modulation               blocks.i.modulation
    output_layer.norm_final                 final_norm
    output_layer.adaLN_modulation           final_modulation
    sigma_map.mlp.0, mlp.2                  input, output of TimestepEmbedding
    output_layer.linear                     the family's head
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules.cache import KeyValueCache, LayerCache, extend_cache
from xlm.modules.examples import check_vocabulary
from xlm.modules.masks import PiecewiseMask, broadcast_over_heads, default_positions
from xlm.modules.padding import PackedTokens, RowwiseMask, embed, pack_wanted
from xlm.modules.rotary import checked_rotary_dim, rotary_angles
from xlm.modules.transformer import (
    Activation,
    FeedForward,
    RotaryAttention,
    check_sizes,
)

_LONGEST_PERIOD = 10000.0


class TimestepEmbedding(nn.Module):
    """Sinusoidal features of a time, then two linear layers with a SiLU in between.

    The features are cos(t f_i) and then sin(t f_i), with f_i = 10000^(-2i / num_frequencies).

    Args:
        d_condition: Width of the embedding.
        num_frequencies: Number of features, even: half of them cosines, half of them sines.

    Raises:
        ValueError: If num_frequencies is odd or below 2.
    """

    def __init__(self, d_condition: int, num_frequencies: int = 256) -> None:
        super().__init__()
        if num_frequencies < 2 or num_frequencies % 2 != 0:
            raise ValueError(f"num_frequencies must be even and at least 2, got {num_frequencies}")
        self.d_condition, self.num_frequencies = d_condition, num_frequencies
        self.input = nn.Linear(num_frequencies, d_condition)
        self.output = nn.Linear(d_condition, d_condition)

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch d_condition"]:
        """Embedding of each time, the condition of :class:`DiT`.

        Args:
            t: Times, or another number on which the network is conditioned, such as the total noise, shape
                (batch,).

        Returns:
            Embeddings in the dtype of the weights, shape (batch, d_condition).
        """
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        steps = torch.arange(0, self.num_frequencies, 2, device=t.device, dtype=t.dtype)
        angles = t.unsqueeze(-1) * torch.exp(-math.log(_LONGEST_PERIOD) / self.num_frequencies * steps)
        features = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.input.weight.dtype)
        embedding: Tensor = self.output(F.silu(self.input(features)))
        return embedding


class DiTBlock(nn.Module):
    """Transformer block with rotary positions, modulated by a condition; the identity at the start.

    Args:
        d_model: Width of the hidden states.
        num_heads: Number of heads; divides d_model.
        d_ff: Width of the inner layer of the MLP.
        d_condition: Width of the condition.
        dropout: Probability of dropping an entry of either update before it is added.
        activation: "gelu" (tanh form), "gelu_erf" or "relu".
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        d_ff: int,
        d_condition: int,
        dropout: float = 0.0,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.attention_norm = nn.LayerNorm(d_model, bias=False)
        self.attention = RotaryAttention(d_model=d_model, num_heads=num_heads)
        self.feed_forward_norm = nn.LayerNorm(d_model, bias=False)
        self.feed_forward = FeedForward(d_model=d_model, d_ff=d_ff, activation=activation)
        self.dropout = nn.Dropout(dropout)
        self.modulation = _zero_linear(d_condition, 6 * d_model)

    def forward(
        self,
        hidden: Float[Tensor, "*tokens d_model"],
        condition: Float[Tensor, "batch d_condition"],
        cos: Float[Tensor, "#batch length half"],
        sin: Float[Tensor, "#batch length half"],
        mask: Bool[Tensor, "#batch 1 #length keys"] | PiecewiseMask | RowwiseMask | None = None,
        *,
        cache: LayerCache | None = None,
        tokens: PackedTokens | None = None,
        wanted: PackedTokens | None = None,
    ) -> Float[Tensor, "*wanted d_model"]:
        """Hidden states after the block.

        Args:
            hidden: Hidden states, shape (batch, length, d_model).
            condition: Condition of each row after its activation, shape (batch, d_condition).
            cos: Cosines of the positions from :func:`xlm.modules.rotary_angles`, shape (batch or 1, length,
                half).
            sin: Sines of the positions, same shape.
            mask: True where a query sees a key, shape (batch or 1, 1, length or 1, keys), or the same in
                pieces; None if all do.
            cache: Keys and values of earlier tokens, to which those of ``hidden`` are added.
            tokens: Where the real tokens stand, if ``hidden`` has these alone, shape (tokens, d_model).
            wanted: Where the tokens stand whose hidden states are wanted, if not all of them are.

        Returns:
            Hidden states of the same shape, or of the wanted tokens alone, shape (wanted, d_model).
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        normed = _modulate(self.attention_norm(hidden), shift_1, scale_1, tokens)
        update = self.attention(normed, cos, sin, mask, cache=cache, tokens=tokens, wanted=wanted)
        rest = wanted or tokens
        hidden = pack_wanted(hidden, tokens, wanted) + _of_tokens(gate_1, rest) * self.dropout(update)
        update = self.feed_forward(_modulate(self.feed_forward_norm(hidden), shift_2, scale_2, rest))
        return hidden + _of_tokens(gate_2, rest) * self.dropout(update)


class DiT(nn.Module):
    """Embedding, modulated blocks and a last modulated norm: token ids and a condition to hidden states.

    A :class:`xlm.modules.ConditionedTrunk`. Weights are drawn from N(0, 1 / d_model), but the modulation
    starts at zero: the blocks are identities and the hidden states are the normed embeddings, whatever the
    condition.

    Args:
        vocab_size: Number of token ids.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of heads; divides d_model.
        d_condition: Width of the condition.
        d_ff: Width of the inner layer of the MLPs; None for 4 * d_model.
        dropout: Probability of dropping an entry of a block's update, in training.
        activation: "gelu" (tanh form), "gelu_erf" or "relu".
        rotary_dim: Coordinates of each head to rotate, even; None for all.

    Raises:
        ValueError: If a size is less than 1, num_heads does not divide d_model, or rotary_dim is odd or more
            than the head has.
    """

    takes_piecewise_mask = True
    takes_positions = True

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        d_condition: int = 128,
        d_ff: int | None = None,
        dropout: float = 0.0,
        activation: Activation = "gelu",
        rotary_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(
            vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, num_heads=num_heads, d_ff=d_ff
        )
        check_sizes(d_condition=d_condition)
        self.vocab_size, self.d_model, self.num_layers, self.num_heads = (
            vocab_size,
            d_model,
            num_layers,
            num_heads,
        )
        self.d_condition, self.d_ff, self.dropout = d_condition, d_ff, dropout
        self.activation = activation
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(
            DiTBlock(
                d_model=d_model,
                num_heads=num_heads,
                d_ff=4 * d_model if d_ff is None else d_ff,
                d_condition=d_condition,
                dropout=dropout,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(d_model, bias=False)
        self.final_modulation = _zero_linear(d_condition, 2 * d_model)
        self.rotary_dim = checked_rotary_dim(rotary_dim, d_model // num_heads)
        self._initialise()

    def _initialise(self) -> None:
        std = self.embedding.embedding_dim**-0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "modulation" not in name:
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"]
        | Bool[Tensor, "batch length keys"]
        | PiecewiseMask
        | None = None,
        position_ids: Int[Tensor, "batch length"] | None = None,
        *,
        condition: Float[Tensor, "batch d_condition"] | None = None,
        cache: KeyValueCache | None = None,
        embedded: Float[Tensor, "batch length d_model"] | None = None,
        positions: Int[Tensor, " cells"] | None = None,
    ) -> Float[Tensor, "*cells d_model"]:
        """Hidden states after the last modulated norm.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: As in :class:`xlm.modules.RotaryTransformer`: shape (batch, length) or (batch,
                length, length), or in pieces; None if nothing is padding.
            position_ids: Position of each token, shape (batch, length); the default is that of
                :class:`xlm.modules.RotaryTransformer`.
            condition: Condition of each row, say from :class:`TimestepEmbedding`, shape (batch, d_condition);
                a SiLU is applied to it here. None for a condition of zeros: the same, learnt, modulation for
                every row.
            cache: Keys and values of the tokens of earlier calls, as in
                :class:`xlm.modules.RotaryTransformer`, for a condition that is the same in all calls.
            embedded: What the blocks read in place of the embeddings of ``input_ids``, such as averages of
                several, shape (batch, length, d_model).
            positions: Cells whose hidden states are wanted, as in :class:`xlm.modules.RotaryTransformer`.

        Returns:
            Hidden states, shape (batch, length, d_model) or (cells, d_model); those at padding have no
            meaning, but are finite.

        Raises:
            ValueError: If the cache is one of a causal network, or holds another number of rows.
        """
        check_vocabulary(input_ids, self.embedding.num_embeddings)
        past = 0
        if cache is not None:
            past = cache.length
            attention_mask = extend_cache(cache, input_ids, attention_mask, causal=False)
        if position_ids is None:
            position_ids = default_positions(past + input_ids.shape[1], attention_mask, input_ids.device)
            position_ids = position_ids[:, past:]
        dtype = self.embedding.weight.dtype
        cos, sin = rotary_angles(position_ids, self.rotary_dim, dtype=dtype)
        mask = broadcast_over_heads(attention_mask) if isinstance(attention_mask, Tensor) else attention_mask
        tokens = PackedTokens.real(attention_mask) if cache is None else None
        hidden, mask = embed(self.embedding, input_ids, embedded, tokens), RowwiseMask.of(mask, tokens)
        if condition is None:
            condition = hidden.new_zeros(len(input_ids), self.d_condition)
        condition = F.silu(condition)
        wanted = None if positions is None else PackedTokens(positions, input_ids.shape)
        for index, block in enumerate(self.blocks, start=1):
            hidden = block(
                hidden,
                condition,
                cos,
                sin,
                mask,
                tokens=tokens,
                cache=None if cache is None else cache.layer(index - 1),
                wanted=wanted if index == len(self.blocks) else None,
            )
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        modulated = _modulate(self.final_norm(hidden), shift, scale, wanted or tokens)
        return modulated if tokens is None or wanted is not None else tokens.pad(modulated)


def _of_tokens(rows: Tensor, tokens: PackedTokens | None) -> Tensor:
    """What belongs to each row, for each of its tokens: of shape (batch, 1, size) or (tokens, size)."""
    return rows.unsqueeze(1) if tokens is None else rows.index_select(0, tokens.rows)


def _modulate(normed: Tensor, shift: Tensor, scale: Tensor, tokens: PackedTokens | None) -> Tensor:
    """Scale and shift each token by the numbers of its row, which are spread no earlier than here."""
    return normed * _of_tokens(1 + scale, tokens) + _of_tokens(shift, tokens)


def _zero_linear(d_in: int, d_out: int) -> nn.Linear:
    linear = nn.Linear(d_in, d_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
