"""SAFE strings as tokens: one token for each match of the published regular expression."""

import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Split

from xlm.tasks.tokenizers import SPECIAL_TOKENS, PretrainedTokenizer

PATTERN: Final = (
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$"
    r"|\%\([0-9]{1,5}\)|\%[0-9]{2}|[0-9])"
)
"""Atoms (those in brackets whole), bonds, branches, ring and attachment numbers, the dot between fragments.

The pattern of SAFE's own splitter (Noutahi et al. 2023, arXiv:2310.10773; ``safe.SAFESplitter`` of safe-mol
0.2.1).
"""

_OUTSIDE_BRACKETS: Final = (
    *"BCNOSPFIbcnosp().=#-+\\/:~@?>*$0123456789",
    *("Br", "Cl", ">>"),
    *(f"%{number}" for number in range(10, 100)),
)
_CHARGES: Final = ("", "+", "-")
_ALIPHATIC: Final = ("B", "C", "N", "O", "P", "S", "Si", "Se", "As")
_AROMATIC: Final = ("b", "c", "n", "o", "p", "s", "se", "as", "te")
_ATOMS: Final = {
    *("[" + "".join(parts) + "]" for parts in product(_ALIPHATIC, ("", "H", "H2", "H3"), _CHARGES)),
    *("[" + "".join(parts) + "]" for parts in product(_ALIPHATIC, ("@", "@@"), ("", "H"), _CHARGES)),
    *("[" + "".join(parts) + "]" for parts in product(_AROMATIC, ("", "H"), _CHARGES)),
}
"""Atoms in brackets of every vocabulary: what organic molecules are made of, with usual charges."""
_VOCABULARY: Final = Path(__file__).with_name("vocabulary.txt")


def split_safe(text: str) -> list[str]:
    """The tokens of a SAFE (or SMILES) string; what the pattern does not know is left out."""
    return re.findall(PATTERN, text)


def make_vocabulary(texts: Iterable[str]) -> list[str]:
    """Every token that needs no brackets, usual atoms in brackets, and those that occur in ``texts``, sorted.

    The result depends on the set of the texts only.
    """
    found = _ATOMS | {token for text in texts for token in split_safe(text) if token.startswith("[")}
    return [*_OUTSIDE_BRACKETS, *sorted(found)]


class SafeTokenizer(PretrainedTokenizer):
    """A word-level tokenizer over the matches of ``PATTERN``.

    Args:
        vocabulary: A file with one token a line, as ``make_vocabulary`` gives them; None for the one that is
            shipped, made of the molecules of the NCI (first 5000), of MOSES and of the drugs in ChEMBL.

    Raises:
        ValueError: If the file names a token twice.
    """

    def __init__(self, vocabulary: str | None = None) -> None:
        from transformers import PreTrainedTokenizerFast

        file = _VOCABULARY if vocabulary is None else Path(vocabulary)
        tokens = [*SPECIAL_TOKENS, *file.read_text(encoding="utf-8").split()]
        if repeated := sorted({token for token in tokens if tokens.count(token) > 1}):
            raise ValueError(f"{file}: the tokens {' '.join(repeated)} stand there more than once")
        backend = Tokenizer(
            WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]")
        )
        # A text that spells a special token is no molecule; it must not become that token.
        names = "|".join(token.strip("[]") for token in SPECIAL_TOKENS)
        backend.normalizer = Replace(Regex(rf"\[({names})\]"), "\N{REPLACEMENT CHARACTER}")
        backend.pre_tokenizer = Split(Regex(PATTERN), "isolated")
        backend.decoder = Fuse()
        special = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
        fast = PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
        )
        self._set_up(fast, str(file), {})
