"""Tokenizers of the Hugging Face Hub (or of a folder in its format) behind XLM's ``Tokenizer`` protocol.

``transformers`` reads the files; encoding and decoding go straight to the fast tokenizer behind it, without
the truncation, the padding and the special tokens that a file may ask for: ``all-MiniLM-L6-v2``, for example,
pads and cuts every text to 128 tokens.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROLES = ("pad", "cls", "mask", "eos", "bos", "sep", "unk")
"""What a special token can be for."""


class PretrainedTokenizer:
    """A fast tokenizer with the special tokens that the model families need.

    Text never becomes a special token: a document that contains the characters ``<|endoftext|>`` or
    ``[MASK]`` is encoded character by character like any other. ``decode`` shows special tokens. Encoding
    adds none.

    Args:
        path: A repository of the Hub, or a folder with ``tokenizer.json`` or other files that
            ``transformers`` knows.
        revision: branch, tag or commit of the repository.
        special_tokens: Role (see ``ROLES``) to token. A token that the vocabulary lacks is added at its end,
            in this order; None leaves the role empty. Roles that are not named stay as the files say. Two
            roles may have the same token.

    Attributes:
        pad_id, cls_id, mask_id, eos_id, bos_id, sep_id, unk_id: ids of the special tokens; None for empty
            roles.

    Raises:
        ValueError: If a role is unknown, or the files hold no vocabulary (``transformers`` returns an empty
            tokenizer where it does not find the files it expects).
        OSError: If there is no such repository or folder.
    """

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        special_tokens: Mapping[str, str | None] | None = None,
    ) -> None:
        from transformers import (
            AutoTokenizer,
        )  # seconds, and not needed by tasks with a tokenizer of their own

        keywords = {} if revision is None else {"revision": revision}
        loaded = AutoTokenizer.from_pretrained(
            _existing(path), use_fast=True, trust_remote_code=False, **keywords
        )
        self._set_up(cast("PreTrainedTokenizerFast", loaded), path, special_tokens or {})

    def _set_up(
        self, tokenizer: "PreTrainedTokenizerFast", path: str, special_tokens: Mapping[str, str | None]
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(f"{path}: {type(tokenizer).__name__} is no fast tokenizer, which is needed here")
        _check_vocabulary(backend, path)
        _assign(tokenizer, special_tokens)
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._backend = backend
        # Kept, since the table that it is read from is made anew by each call, in milliseconds.
        self._vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        ids: dict[str, int | None] = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
        self.pad_id, self.cls_id, self.mask_id, self.eos_id = (
            ids[role] for role in ("pad", "cls", "mask", "eos")
        )
        self.bos_id, self.sep_id, self.unk_id = (ids[role] for role in ("bos", "sep", "unk"))

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id, special tokens included."""
        return self._vocab_size

    @property
    def fingerprint(self) -> str:
        """Hash of all that the tokenizer does, wherever its files lie; part of the key of prepared data."""
        roles = {role: getattr(self, f"{role}_id") for role in ROLES}
        return hashlib.sha256((self._backend.to_str() + json.dumps(roles)).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens, never cut or padded."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as ``encode`` gives them; the tokenizer's own threads share the work."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens shown.

        Raises:
            ValueError: If an id is not in the vocabulary.
        """
        size = self.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise ValueError(f"id {token_id} is not in [0, {size})")
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files from which ``AutoTokenizer.from_pretrained(folder)`` makes the same tokenizer."""
        self._tokenizer.save_pretrained(str(folder))

    def __getstate__(self) -> dict[str, object]:
        """The state without what pickle would lose: a backend does not keep ``encode_special_tokens``."""
        return {name: value for name, value in self.__dict__.items() if name != "_backend"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True


def _existing(path: str) -> str:
    """The path, with ``~`` resolved where it is a folder."""
    folder = Path(path).expanduser()
    return str(folder) if folder.is_dir() else path


def _check_vocabulary(backend: Tokenizer, path: str) -> None:
    special = sum(token.special for token in backend.get_added_tokens_decoder().values())
    if backend.get_vocab_size(with_added_tokens=True) <= special:
        raise ValueError(
            f"{path}: the files hold no vocabulary but {special} special tokens. "
            "Is tokenizer.json (or vocab.json with merges.txt, or vocab.txt) there?"
        )


def _assign(tokenizer: "PreTrainedTokenizerFast", special_tokens: Mapping[str, str | None]) -> None:
    """Return each named role its token, adding tokens that are not there."""
    if unknown := sorted(set(special_tokens) - set(ROLES)):
        raise ValueError(f"special_tokens: unknown roles {unknown}; the roles are {', '.join(ROLES)}")
    tokenizer.add_special_tokens({f"{role}_token": token for role, token in special_tokens.items() if token})
    for role, token in special_tokens.items():
        if token is None:
            setattr(tokenizer, f"{role}_token", None)
