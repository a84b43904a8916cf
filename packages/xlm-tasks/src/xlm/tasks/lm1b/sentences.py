"""Sentences of the benchmark as ordinary English: its tokens stand apart, with spaces around punctuation.

The rules are those that the literature uses on this data set (since D3PM, Austin et al. 2021,
arXiv:2107.03006; SEDD and MDLM after it), so that generated texts and perplexities of other vocabularies stay
comparable. They are applied in this order, each to the whole sentence.
"""

import re
from collections.abc import Mapping

from xlm.tasks.text import EncodedText, encode_text

RULES: tuple[tuple[str, str], ...] = (
    # web addresses: http : / / x -> http://x
    (r"(https?) : / / ", r"\1://"),
    # what follows an apostrophe belongs to the word before: it 's -> it's
    (r" '(\w+)", r"'\1"),
    # full stops, inside and at the end, behind a word that stands alone
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    # marks that belong to the word before
    (r" \? ", "? "),
    (r" \?$", "?"),
    (r" ! ", "! "),
    (r" !$", "!"),
    (r" , ", ", "),
    (r" : ", ": "),
    (r" ; ", "; "),
    # a slash joins both sides
    (r" / ", "/"),
    # what stands between two marks of a pair
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    # a currency belongs to the amount
    (r"\$ ", "$"),
    (r"£ ", "£"),
)
"""Pattern and replacement; see the comments."""

_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in RULES)


def detokenise(sentence: str) -> str:
    """A sentence of the benchmark as it would be written."""
    for pattern, replacement in _COMPILED:
        sentence = pattern.sub(replacement, sentence)
    return sentence


def encode_lm1b(row: Mapping[str, object], tokenizer: object = None) -> EncodedText | None:
    """The sentence of a row (column ``text``), detokenised; None for an empty one."""
    encoded = encode_text(row)
    return encoded and {"target_ids": detokenise(encoded["target_ids"])}
