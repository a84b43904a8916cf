"""Tokenizers for tasks whose texts are not natural language."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[MASK]", "[EOS]", "[BOS]", "[SEP]", "[UNK]")

MOST = 10_000_000
"""Numbers that are named one by one; more would exhaust memory without an error."""


class NumberTokenizer:
    """Whole numbers and special tokens, written with single spaces between: ``12 7 [SEP]``.

    The special tokens have the ids 0 to 6 in the order of ``SPECIAL_TOKENS``, the number n has the id n + 7.
    Each id has exactly one name, so ``encode`` and ``decode`` undo each other. A text with anything else in
    it is an error and never becomes ``[UNK]``: in a synthetic task an unknown token means a wrong setting.

    Args:
        num_numbers: How many numbers there are: 0, 1, ..., num_numbers - 1.

    Raises:
        ValueError: If ``num_numbers`` is not in 1, ..., 10 000 000.
    """

    pad_id: int = 0
    cls_id: int = 1
    mask_id: int = 2
    eos_id: int = 3
    bos_id: int = 4
    sep_id: int = 5
    unk_id: int = 6

    def __init__(self, num_numbers: int) -> None:
        if not 1 <= num_numbers <= MOST:
            raise ValueError(f"num_numbers must be between 1 and {MOST:,}, got {num_numbers}")
        self._names = (*SPECIAL_TOKENS, *map(str, range(num_numbers)))
        self._ids = {name: token_id for token_id, name in enumerate(self._names)}

    @property
    def vocab_size(self) -> int:
        """Number of ids: the special tokens and the numbers."""
        return len(self._names)

    def encode(self, text: str) -> list[int]:
        """Turn a text into ids; adds no special tokens.

        Args:
            text: Names separated by white space, possibly none.

        Returns:
            One id per name.

        Raises:
            ValueError: If a name is neither a special token nor a number in range.
        """
        try:
            return [self._ids[name] for name in text.split()]
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]!r} is not a token; allowed are the numbers 0 to {self._names[-1]} "
                f"and {' '.join(SPECIAL_TOKENS)}"
            ) from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn several texts into ids, as ``encode`` does."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into a text; leaves no special token out.

        Args:
            ids: Ids in [0, vocab_size), possibly none.

        Returns:
            Their names with single spaces between.

        Raises:
            ValueError: If an id is out of range.
        """
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"id {token_id} is not in [0, {self.vocab_size})")
        return " ".join(self._names[token_id] for token_id in ids)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files from which ``AutoTokenizer.from_pretrained(folder)`` makes the same tokenizer.

        The same but for texts that are not allowed here, which it turns into ``[UNK]``.
        """
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(WordLevel(self._ids, unk_token="[UNK]"))
        backend.pre_tokenizer = WhitespaceSplit()
        roles = {f"{name[1:-1].lower()}_token": name for name in SPECIAL_TOKENS}
        PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(str(folder))
