"""Keys and values of the tokens a causal network has already seen, for decoding token by token."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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

    def __init__(self) -> None:
        self.length = 0  # columns so far, padding included
        self._batch: int | None = None
        self._real: Tensor | None = None  # (batch, length); None as long as nothing is padding
        self._layers: list[LayerCache] = []

    def layer(self, index: int) -> LayerCache:
        """Cache of a layer; the layers are counted from 0 and met in this order."""
        if index == len(self._layers):
            self._layers.append(LayerCache())
        return self._layers[index]

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
        if self._batch not in (None, batch):
            raise ValueError(
                f"the cache holds {self._batch} rows and the call has {batch}: use select() when rows leave"
            )
        if self._real is not None or attention_mask is not None:
            before = _all_real(input_ids, self.length) if self._real is None else self._real
            new = _all_real(input_ids, length) if attention_mask is None else attention_mask
            self._real = torch.cat((before, new), dim=1)
        self._batch = batch
        self.length += length
        return self._real

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
