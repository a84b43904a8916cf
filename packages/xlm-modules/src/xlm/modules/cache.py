"""Keys and values that later tokens do not change.

In a causal network those of all tokens so far, in a bidirectional one those of a prompt that does not see the
target, or of finished blocks that do not see later ones.
"""

from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from xlm.modules.masks import PiecewiseMask


class LayerCache:
    """Keys and values of one layer, in buffers that double when they are full."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(
        self,
        key: Float[Tensor, "batch heads length head_dim"],
        value: Float[Tensor, "batch heads length head_dim"],
    ) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
        """Add the keys and values of new tokens.

        Args:
            key: Rotated keys of the new tokens, shape (batch, heads, length, head_dim).
            value: Their values, same shape.

        Returns:
            Keys and values of all tokens so far, each of shape (batch, heads, keys, head_dim). They are views
            of the buffers.
        """
        end = self.length + key.shape[2]
        self._keys = _with_room(self._keys, key, self.length, end)
        self._values = _with_room(self._values, value, self.length, end)
        self._keys[:, :, self.length : end] = key
        self._values[:, :, self.length : end] = value
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def select(self, rows: Int[Tensor, " kept"] | Bool[Tensor, " batch"]) -> None:
        """Keep the given rows, in the given order."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[rows], self._values[rows]


class KeyValueCache:
    """State of a causal network between calls: the keys and values of each layer, and which are padding.

    Start with an empty cache and give it to each call of :class:`xlm.modules.RotaryTransformer` together with
    the new tokens alone: first the prompts, then one token per row at a time. Padding, given by the mask of
    the call that brings it, stays hidden in all later calls, and positions count the real tokens only. The
    cache is for inference, under ``torch.no_grad`` or ``torch.inference_mode``.
    """

    is_bidirectional: ClassVar[bool] = False
    """Whether the tokens of a call see each other."""

    def __init__(self) -> None:
        self.length: int = 0  # columns so far, padding included
        self._batch: int | None = None
        self._real: Tensor | None = None  # (batch, length); None as long as nothing is padding
        self._layers: list[LayerCache] = []

    def layer(self, index: int) -> LayerCache:
        """Cache of a layer; the layers are counted from 0 and met in this order."""
        if index == len(self._layers):
            self._layers.append(self._new_layer())
        return self._layers[index]

    def _new_layer(self) -> LayerCache:
        return LayerCache()

    def extend(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Bool[Tensor, "batch length"] | None
    ) -> Bool[Tensor, "batch keys"] | None:
        """Count the columns of new tokens; the layers append the keys and values.

        Args:
            input_ids: Ids of the new tokens, shape (batch, length).
            attention_mask: True at real ones, shape (batch, length); None if all are.

        Returns:
            True at the real tokens among all so far, shape (batch, keys); None if all are.

        Raises:
            ValueError: If the number of rows is not that of the earlier calls.
        """
        batch, length = input_ids.shape
        self._check_batch(batch)
        self._real = self._joined(input_ids, attention_mask)
        self._batch = batch
        self.length += length
        return self._real

    def _check_batch(self, batch: int) -> None:
        if self._batch not in (None, batch):
            raise ValueError(
                f"the cache holds {self._batch} rows and the call has {batch}: use select() when rows leave"
            )

    def _joined(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """True at the real ones of the tokens so far and the new ones; None if all are."""
        if self._real is None and attention_mask is None:
            return None
        before = _all_real(input_ids, self.length) if self._real is None else self._real
        new = _all_real(input_ids, input_ids.shape[1]) if attention_mask is None else attention_mask
        return torch.cat((before, new), dim=1)

    def select(self, rows: Int[Tensor, " kept"] | Bool[Tensor, " batch"]) -> None:
        """Keep the given rows in the given order, in place: finished rows leave, beams are copied.

        Args:
            rows: Indices of the rows to keep, repeated if need be, shape (kept,); or True at the rows to
                keep, shape (batch,).
        """
        if self._batch is None:
            return
        self._batch = int(rows.sum()) if rows.dtype == torch.bool else len(rows)
        if self._real is not None:
            self._real = self._real[rows]
        for layer in self._layers:
            layer.select(rows)


class PromptLayerCache(LayerCache):
    """Keys and values of the prompts in one layer: set by the first call, never extended."""

    def append(
        self,
        key: Float[Tensor, "batch heads length head_dim"],
        value: Float[Tensor, "batch heads length head_dim"],
    ) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
        """Keys and values of the prompts and of the new tokens, which are not kept."""
        if self._keys is None or self._values is None:
            self._keys, self._values = key, value
            return key, value
        return torch.cat((self._keys, key), dim=2), torch.cat((self._values, value), dim=2)


class PromptCache(KeyValueCache):
    """Keys and values of prompts that do not see their targets, for a bidirectional network.

    The first call of the trunk has the prompts, padded on the right, and fills the cache. Each later call has
    the columns of the targets alone: their tokens see the prompt and each other, and leave nothing in the
    cache, since they may differ in the next call. The hidden states equal those of one call with
    :func:`xlm.modules.prompt_mask`.
    """

    is_bidirectional: ClassVar[bool] = True

    def _new_layer(self) -> LayerCache:
        return PromptLayerCache()

    def extend(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Bool[Tensor, "batch length"] | None
    ) -> Bool[Tensor, "batch keys"] | None:
        """As in :class:`KeyValueCache`, but only the first call is counted."""
        if self._batch == len(input_ids):
            return self._joined(input_ids, attention_mask)
        return super().extend(input_ids, attention_mask)

    def of_rows(self, rows: Int[Tensor, " kept"]) -> "PromptCache":
        """A cache of the given rows, repeated if need be; this one keeps all of its own."""
        if len(rows) == self._batch and torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            return self
        kept = copy(self)
        kept._layers = [copy(layer) for layer in self._layers]
        kept.select(rows)
        return kept


class BlockLayerCache(LayerCache):
    """Keys and values of the clean tokens in one layer; those of a call are kept or not.

    They are joined to new tables: an evaluation can be differentiated, and a peek shares what it looks at.
    """

    def __init__(self, *, keeps: bool = True) -> None:
        super().__init__()
        self._keeps = keeps

    def append(
        self,
        key: Float[Tensor, "batch heads length head_dim"],
        value: Float[Tensor, "batch heads length head_dim"],
    ) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
        """Keys and values of the tokens so far and of the new ones."""
        if self._keys is not None and self._values is not None:
            key, value = torch.cat((self._keys, key), dim=2), torch.cat((self._values, value), dim=2)
        if self._keeps:
            self._keys, self._values = key, value
        return key, value

    def forget(self, start: int, stop: int) -> None:
        """Remove the columns from ``start`` to ``stop``."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = (
                torch.cat((table[:, :, :start], table[:, :, stop:]), dim=2)
                for table in (self._keys, self._values)
            )

    def put(self, rows: Int[Tensor, " some"], part: "BlockLayerCache", batch: int) -> None:
        """Take over what ``part`` has of some of the ``batch`` rows."""
        if part._keys is not None and part._values is not None:
            self._keys = _put(self._keys, rows, part._keys, batch)
            self._values = _put(self._values, rows, part._values, batch)

    def peek(self) -> "BlockLayerCache":
        """The same keys and values, to which nothing is added."""
        peeked = BlockLayerCache(keeps=False)
        peeked._keys, peeked._values = self._keys, self._values
        return peeked


class BlockCache(KeyValueCache):
    """Keys and values of clean tokens that do not see later ones, for text written block by block.

    A call of a bidirectional trunk with the cache itself *appends*: its tokens see those before and each
    other, and are seen by later calls; of several blocks at once, a mask of shape (batch, length, keys) says
    who sees whom. A call with :meth:`peek` sees the same and leaves nothing behind: an evaluation of a block
    that still has masks. Such a block may also stand beside clean ones in a call that appends, if
    :meth:`forget` then removes its columns.
    """

    is_bidirectional: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._keeps = True

    def peek(self) -> "BlockCache":
        """A cache with the same content that calls only read."""
        peeked = copy(self)
        peeked._keeps = False
        peeked._layers = [layer.peek() for layer in self._layers if isinstance(layer, BlockLayerCache)]
        return peeked

    def _new_layer(self) -> LayerCache:
        return BlockLayerCache(keeps=self._keeps)

    def extend(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length keys"] | None,
    ) -> Bool[Tensor, "batch keys"] | Bool[Tensor, "batch length keys"] | None:
        """As in :class:`KeyValueCache`; a peek counts nothing.

        A mask of shape (batch, length, keys), over the tokens so far and the new ones, is returned as it is;
        a new token that none sees counts as padding.
        """
        if attention_mask is not None and attention_mask.dim() == 3:
            self.extend(input_ids, attention_mask[:, :, self.length :].any(1))
            return attention_mask
        if self._keeps:
            return super().extend(input_ids, attention_mask)
        self._check_batch(len(input_ids))
        return self._joined(input_ids, attention_mask)

    @property
    def real(self) -> Bool[Tensor, "batch keys"] | None:
        """True at the real tokens so far; None if all are."""
        return self._real

    def forget(self, start: int, stop: int) -> None:
        """Remove the columns from ``start`` to ``stop``, as if their tokens had never been there."""
        self.length -= stop - start
        if self._real is not None:
            self._real = torch.cat((self._real[:, :start], self._real[:, stop:]), dim=1)
        for layer in self._layers:
            if isinstance(layer, BlockLayerCache):
                layer.forget(start, stop)

    def of_rows(self, rows: Int[Tensor, " kept"]) -> "BlockCache":
        """A cache of the given rows, repeated if need be; this one keeps all of its own."""
        kept = copy(self)
        kept._layers = [copy(layer) for layer in self._layers]
        if len(rows) != self._batch or not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            kept.select(rows)
        return kept

    def put(self, rows: Int[Tensor, " some"], part: "BlockCache", *, batch: int) -> "BlockCache":
        """A cache in which some rows have more, and the others padding in its place.

        Args:
            rows: Indices of the rows that have more, shape (some,).
            part: What these rows have: ``of_rows(rows)`` and further tokens.
            batch: Number of rows of this cache.
        """
        extended = copy(self)
        extended._batch, extended.length = batch, part.length
        real = torch.zeros(batch, part.length, dtype=torch.bool, device=rows.device)
        real[:, : self.length] = True if self._real is None else self._real
        real[rows] = True if part._real is None else part._real
        extended._real = real
        extended._layers = []
        for index, of_part in enumerate(part._layers):
            layer = copy(self._layers[index]) if self._layers else self._new_layer()
            assert isinstance(layer, BlockLayerCache)
            assert isinstance(of_part, BlockLayerCache)
            layer.put(rows, of_part, batch)
            extended._layers.append(layer)
        return extended


def extend_cache(
    cache: KeyValueCache,
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length keys"] | PiecewiseMask | None,
    *,
    causal: bool,
) -> Bool[Tensor, "batch keys"] | Bool[Tensor, "batch length keys"] | None:
    """Enter the new tokens of a call into its cache.

    Args:
        cache: The cache.
        input_ids: Ids of the new tokens, shape (batch, length).
        attention_mask: Their mask.
        causal: Whether the network is.

    Returns:
        True at the real ones among the tokens so far and the new ones, shape (batch, keys), or None if all
        are; a mask of three axes as it is.

    Raises:
        ValueError: If the cache is not of the network's kind or holds another number of rows, or the mask has
            three axes and the cache is no :class:`xlm.modules.BlockCache`.
    """
    if causal == cache.is_bidirectional:
        raise ValueError(
            "a cache needs a causal network, where earlier tokens do not see the new ones; that of a "
            "bidirectional one is a PromptCache or a BlockCache"
        )
    if isinstance(attention_mask, PiecewiseMask):
        attention_mask = attention_mask.dense()
    is_table = attention_mask is not None and attention_mask.dim() == 3
    if is_table and not isinstance(cache, BlockCache):
        raise ValueError("a cache takes an attention_mask of shape (batch, length), one row per sequence")
    return cache.extend(input_ids, attention_mask)


@dataclass(frozen=True)
class Columns:
    """Some columns of each row, moved to the left in their order."""

    source: Int[Tensor, "rows width"]
    """Where each column comes from."""
    exists: Bool[Tensor, "rows width"]
    """False at the padding on the right."""

    @staticmethod
    def of(wanted: Bool[Tensor, "rows length"]) -> "Columns":
        """The columns where ``wanted`` is True, at least one, which may be padding, per row."""
        number = wanted.sum(1)
        width = max(int(number.max()), 1) if len(number) > 0 else 1
        source = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        return Columns(source, torch.arange(width, device=number.device) < number.unsqueeze(1))

    def take(self, table: Shaped[Tensor, "rows length"]) -> Shaped[Tensor, "rows width"]:
        """The columns of a table; 0 or False at padding."""
        return table.gather(1, self.source).masked_fill_(~self.exists, 0)


def _all_real(input_ids: Tensor, length: int) -> Tensor:
    return torch.ones(input_ids.shape[0], length, dtype=torch.bool, device=input_ids.device)


def _with_room(buffer: Tensor | None, new: Tensor, length: int, end: int) -> Tensor:
    """The buffer, or one of twice the length with the same content if it ends before ``end``."""
    if buffer is not None and buffer.shape[2] >= end:
        return buffer
    batch, heads, _, head_dim = new.shape
    larger = new.new_empty(batch, heads, max(end, 2 * length), head_dim)
    if buffer is not None:
        larger[:, :, :length] = buffer[:, :, :length]
    return larger


def _put(table: Tensor | None, rows: Tensor, part: Tensor, batch: int) -> Tensor:
    """The table with ``part`` in some rows, and 0 where the other rows have no such columns."""
    wider = part.new_zeros(batch, *part.shape[1:])
    if table is not None:
        wider[:, :, : table.shape[2]] = table
    return wider.index_copy(0, rows, part)
