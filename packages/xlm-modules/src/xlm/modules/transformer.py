"""A transformer encoder or decoder with rotary positions, and its parts.

Pre-norm blocks (x + attention(norm(x)), then x + mlp(norm(x))), attention projections without bias, norms and
MLP with bias, by default GELU in its tanh form, as in GPT-2 (Radford et al. 2019) but for the rotary
positions. The network ends after the last norm with hidden states: output heads belong to the model families.

Axes: batch, length (tokens), heads, head_dim = d_model / heads, half = rotary_dim / 2 (angles).
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules.cache import KeyValueCache, LayerCache, extend_cache
from xlm.modules.examples import check_vocabulary
from xlm.modules.linear import Linear, linear_then
from xlm.modules.masks import PiecewiseMask, broadcast_over_heads, default_positions
from xlm.modules.padding import PackedTokens, RowwiseMask, embed, pack_wanted
from xlm.modules.rotary import apply_rotary, checked_rotary_dim, rotary_angles

Activation = Literal["gelu", "gelu_erf", "relu"]
"""Of the MLPs: GELU in its tanh form, GELU by the error function (twice as fast on a CPU), or ReLU."""


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions.

    ``project`` and ``attend`` are the two halves of ``forward``; a key-value cache stands between them.

    Args:
        d_model: Width of the hidden states.
        num_heads: Number of heads; divides d_model.
    """

    def __init__(self, *, d_model: int, num_heads: int) -> None:
        super().__init__()
        if d_model % num_heads != 0:
            raise ValueError(f"d_model ({d_model}) must be a multiple of num_heads ({num_heads})")
        self.num_heads = num_heads
        self.qkv = Linear(d_model, 3 * d_model, bias=False)
        self.output = Linear(d_model, d_model, bias=False)

    def project(
        self,
        hidden: Float[Tensor, "*tokens d_model"],
        cos: Float[Tensor, "#batch length half"],
        sin: Float[Tensor, "#batch length half"],
        tokens: PackedTokens | None = None,
    ) -> tuple[
        Float[Tensor, "batch heads length head_dim"],
        Float[Tensor, "batch heads length head_dim"],
        Float[Tensor, "batch heads length head_dim"],
    ]:
        """Rotated queries, rotated keys and values of the hidden states.

        Args:
            hidden: Normed hidden states, shape (batch, length, d_model).
            cos: Cosines of the positions, shape (batch or 1, length, half).
            sin: Sines of the positions, same shape.
            tokens: Where the real tokens stand, if ``hidden`` has these alone, shape (tokens, d_model).

        Returns:
            Queries, keys and values, each of shape (batch, heads, length, head_dim).
        """
        qkv: Tensor = self.qkv(hidden)
        if tokens is not None:
            qkv = tokens.pad(qkv)
        rotated, rest = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).split((2, 1))
        query, key = apply_rotary(rotated, cos, sin)
        return query, key, rest[0]

    def attend(
        self,
        query: Float[Tensor, "batch heads queries head_dim"],
        key: Float[Tensor, "batch heads keys head_dim"],
        value: Float[Tensor, "batch heads keys head_dim"],
        mask: Bool[Tensor, "#batch 1 #queries keys"] | PiecewiseMask | RowwiseMask | None = None,
        *,
        is_causal: bool = False,
        tokens: PackedTokens | None = None,
    ) -> Float[Tensor, "*tokens d_model"]:
        """Attend and project back to the width of the hidden states.

        Args:
            query: Rotated queries, shape (batch, heads, queries, head_dim).
            key: Rotated keys, shape (batch, heads, keys, head_dim).
            value: Values, same shape as the keys.
            mask: True where a query sees a key, broadcast over heads, or the same in pieces; None if all do.
                A query without a key gets zeros.
            is_causal: Whether query i sees the keys 0..i only. Only without a mask.
            tokens: Where the tokens stand whose updates are wanted, if not those of all.

        Returns:
            Update of the hidden states, shape (batch, queries, d_model), or (tokens, d_model).
        """
        if isinstance(mask, PiecewiseMask | RowwiseMask):
            attended = mask.attend(query, key, value)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        attended = attended.transpose(1, 2).flatten(2)
        update: Tensor = self.output(attended if tokens is None else tokens.pack(attended))
        return update

    def forward(
        self,
        hidden: Float[Tensor, "*tokens d_model"],
        cos: Float[Tensor, "#batch length half"],
        sin: Float[Tensor, "#batch length half"],
        mask: Bool[Tensor, "#batch 1 #length keys"] | PiecewiseMask | RowwiseMask | None = None,
        *,
        is_causal: bool = False,
        cache: LayerCache | None = None,
        tokens: PackedTokens | None = None,
        wanted: PackedTokens | None = None,
    ) -> Float[Tensor, "*wanted d_model"]:
        """``attend`` after ``project``, with their arguments; a cache adds the keys of earlier tokens."""
        query, key, value = self.project(hidden, cos, sin, tokens)
        if cache is not None:
            key, value = cache.append(key, value)
        return self.attend(query, key, value, mask, is_causal=is_causal, tokens=wanted or tokens)


class FeedForward(nn.Module):
    """Two linear layers with an activation in between.

    Args:
        d_model: Width of the hidden states.
        d_ff: Width of the inner layer.
        activation: "gelu" (tanh form), "gelu_erf" or "relu".
    """

    def __init__(self, *, d_model: int, d_ff: int, activation: Activation = "gelu") -> None:
        super().__init__()
        kinds = get_args(Activation)
        if activation not in kinds:
            raise ValueError(f"activation must be one of {kinds}, got {activation!r}")
        self.input = Linear(d_model, d_ff)
        gelu = nn.GELU(approximate="tanh" if activation == "gelu" else "none")
        self.activation = nn.ReLU() if activation == "relu" else gelu
        self.output = Linear(d_ff, d_model)

    def forward(self, hidden: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape d_model"]:
        """Update of the hidden states, position by position."""
        update: Tensor = self.output(linear_then(self.input, self.activation, hidden))
        return update


class RotaryBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        d_model: Width of the hidden states.
        num_heads: Number of heads; divides d_model.
        d_ff: Width of the inner layer of the MLP.
        dropout: Probability of dropping an entry of either update before it is added.
        activation: "gelu" (tanh form), "gelu_erf" or "relu".
        norm_eps: Added to the variance in the norms.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        activation: Activation = "gelu",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, eps=norm_eps)
        self.attention = RotaryAttention(d_model=d_model, num_heads=num_heads)
        self.feed_forward_norm = nn.LayerNorm(d_model, eps=norm_eps)
        self.feed_forward = FeedForward(d_model=d_model, d_ff=d_ff, activation=activation)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden: Float[Tensor, "*tokens d_model"],
        cos: Float[Tensor, "#batch length half"],
        sin: Float[Tensor, "#batch length half"],
        mask: Bool[Tensor, "#batch 1 #length keys"] | PiecewiseMask | RowwiseMask | None = None,
        *,
        is_causal: bool = False,
        cache: LayerCache | None = None,
        tokens: PackedTokens | None = None,
        wanted: PackedTokens | None = None,
    ) -> Float[Tensor, "*wanted d_model"]:
        """Hidden states after the block.

        Args:
            hidden: Hidden states, shape (batch, length, d_model).
            cos: Cosines of the positions from :func:`xlm.modules.rotary_angles`, shape (batch or 1, length,
                half); their number says how many coordinates of a head are rotated.
            sin: Sines of the positions, same shape.
            mask: True where a query sees a key, shape (batch or 1, 1, length or 1, keys), or the same in
                pieces; None if all do.
            is_causal: Whether a token sees itself and its left only. Only without a mask.
            cache: Keys and values of earlier tokens, to which those of ``hidden`` are added; without it the
                keys are those of ``hidden``.
            tokens: Where the real tokens stand, if ``hidden`` has these alone, shape (tokens, d_model).
            wanted: Where the tokens stand whose hidden states are wanted, if not all of them are.

        Returns:
            Hidden states of the same shape, or of the wanted tokens alone, shape (wanted, d_model).
        """
        normed = self.attention_norm(hidden)
        update = self.attention(
            normed, cos, sin, mask, is_causal=is_causal, cache=cache, tokens=tokens, wanted=wanted
        )
        hidden = pack_wanted(hidden, tokens, wanted) + self.dropout(update)
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class RotaryTransformer(nn.Module):
    """Embedding, blocks and a last norm: token ids to hidden states (a :class:`xlm.modules.Trunk`).

    Weights are drawn from N(0, 1 / d_model), which keeps the variance of what they multiply (LeCun et al.
    1998, "Efficient BackProp") at every width: standard deviation 0.036 at d_model 768, 0.088 at 128. Those
    of the two projections of each block that write into the residual stream are smaller by
    sqrt(2 num_layers), so that its variance at the start does not grow with the depth (GPT-2, Radford et al.
    2019, section 2.3).

    Args:
        vocab_size: Number of token ids.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of heads; divides d_model.
        d_ff: Width of the inner layer of the MLPs; None for 4 * d_model.
        dropout: Probability of dropping an entry of a block's update, in training.
        activation: "gelu" (tanh form), "gelu_erf" or "relu".
        rotary_dim: Coordinates of each head to rotate, even; None for all.
        causal: Whether a token sees itself and its left only.
        norm_eps: Added to the variance in the norms.

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
        d_ff: int | None = None,
        dropout: float = 0.0,
        activation: Activation = "gelu",
        rotary_dim: int | None = None,
        causal: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_sizes(
            vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, num_heads=num_heads, d_ff=d_ff
        )
        self.vocab_size, self.d_model, self.num_layers, self.num_heads = (
            vocab_size,
            d_model,
            num_layers,
            num_heads,
        )
        self.d_ff, self.dropout, self.activation, self.norm_eps = d_ff, dropout, activation, norm_eps
        self.causal = causal
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(
            RotaryBlock(
                d_model=d_model,
                num_heads=num_heads,
                d_ff=4 * d_model if d_ff is None else d_ff,
                dropout=dropout,
                activation=activation,
                norm_eps=norm_eps,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(d_model, eps=norm_eps)
        self.rotary_dim = checked_rotary_dim(rotary_dim, d_model // num_heads)
        self._initialise()

    def _initialise(self) -> None:
        std = self.embedding.embedding_dim**-0.5
        residual_std = std / math.sqrt(2 * max(len(self.blocks), 1))
        for name, parameter in self.named_parameters():
            if name.endswith("output.weight"):
                nn.init.normal_(parameter, std=residual_std)
            elif parameter.dim() == 2:
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
        cache: KeyValueCache | None = None,
        embedded: Float[Tensor, "batch length d_model"] | None = None,
        positions: Int[Tensor, " cells"] | None = None,
    ) -> Float[Tensor, "*cells d_model"]:
        """Hidden states after the last norm.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: True at real tokens, shape (batch, length); or True where a query (axis 1) sees a
                key (axis 2), shape (batch, length, length), see :func:`segment_mask`, or the same in pieces;
                None if nothing is padding, which permits the fastest attention kernels. A causal network adds
                its own mask.
            position_ids: Position of each token, shape (batch, length). By default the number of real tokens
                to its left (the same with left and right padding), and 0, 1, ... with a mask of three axes,
                where only the differences inside a segment matter.
            cache: Keys and values of the tokens of earlier calls, which the tokens of this call see and are
                added to; ``input_ids`` and ``attention_mask`` are about the new tokens alone. Only for masks
                of two axes (but see :class:`xlm.modules.BlockCache`); a bidirectional network takes a
                :class:`xlm.modules.PromptCache` or a :class:`xlm.modules.BlockCache`, no other.
            embedded: What the blocks read in place of the embeddings of ``input_ids``, shape (batch, length,
                d_model).
            positions: Cells whose hidden states are wanted, as indices into the batch * length cells, shape
                (cells,); the last block does no more for the others than they need. None for all cells.

        Returns:
            Hidden states, shape (batch, length, d_model) or (cells, d_model); those at padding have no
            meaning, but are finite.

        Raises:
            ValueError: If the cache is not of the network's kind, is given together with a mask of three
                axes, or holds another number of rows.
        """
        check_vocabulary(input_ids, self.embedding.num_embeddings)
        past = 0
        if cache is not None:
            past = cache.length
            attention_mask = extend_cache(cache, input_ids, attention_mask, causal=self.causal)
        if position_ids is None:
            position_ids = default_positions(past + input_ids.shape[1], attention_mask, input_ids.device)
            position_ids = position_ids[:, past:]
        cos, sin = rotary_angles(position_ids, self.rotary_dim, dtype=self.embedding.weight.dtype)
        mask = self._attention_mask(attention_mask, past, input_ids)
        is_causal = self.causal and mask is None and past == 0
        tokens = PackedTokens.real(attention_mask) if cache is None else None
        hidden, mask = embed(self.embedding, input_ids, embedded, tokens), RowwiseMask.of(mask, tokens)
        wanted = None if positions is None else PackedTokens(positions, input_ids.shape)
        for index, block in enumerate(self.blocks, start=1):
            hidden = block(
                hidden,
                cos,
                sin,
                mask,
                is_causal=is_causal,
                tokens=tokens,
                cache=None if cache is None else cache.layer(index - 1),
                wanted=wanted if index == len(self.blocks) else None,
            )
        normed: Tensor = self.final_norm(hidden)
        return normed if tokens is None or wanted is not None else tokens.pad(normed)

    def _attention_mask(
        self, attention_mask: Tensor | PiecewiseMask | None, past: int, input_ids: Tensor
    ) -> Tensor | PiecewiseMask | None:
        """Mask of shape (batch or 1, 1, length or 1, past + length), or None if the kernel needs none."""
        if isinstance(attention_mask, PiecewiseMask):
            if not self.causal:
                return attention_mask
            attention_mask = attention_mask.dense()
        mask = None if attention_mask is None else broadcast_over_heads(attention_mask)
        if not self.causal:
            return mask
        length = input_ids.shape[1]
        if mask is None and (past == 0 or length == 1):
            return None
        causal = torch.ones(1, 1, length, past + length, dtype=torch.bool, device=input_ids.device).tril(past)
        return causal if mask is None else mask & causal


def check_sizes(**sizes: int | None) -> None:
    """Refuse a network without layers, heads or units.

    Raises:
        ValueError: If a size is below 1; names the first (None stands for a default).
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
