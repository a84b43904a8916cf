"""The tokenizer that the job ``audit`` puts in the place of a task's own."""

from collections.abc import Sequence


class TinyTokenizer:
    """A few letters and the special tokens of every family.

    Args:
        num_tokens: Number of letters.
    """

    pad_id: int = 0
    cls_id: int = 1
    mask_id: int = 2
    eos_id: int = 3
    bos_id: int = 4
    sep_id: int = 5
    unk_id: None = None  # it would be one more token of texts

    def __init__(self, num_tokens: int) -> None:
        special = ["[PAD]", "[CLS]", "[MASK]", "[EOS]", "[BOS]", "[SEP]"]
        self._names = [*special, *map(chr, range(ord("a"), ord("a") + num_tokens))]

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self._names)

    def encode(self, text: str) -> list[int]:
        """Ids of names with spaces between them."""
        return [self._names.index(name) for name in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Names with spaces between them."""
        return " ".join(self._names[token] for token in ids)
