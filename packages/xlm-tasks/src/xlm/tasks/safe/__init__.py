"""Small molecules as SAFE strings: de novo generation and generation around given fragments."""

from xlm.tasks.safe.dataset import (
    attachment_points,
    encode_fragments,
    encode_safe,
    encode_smiles,
    given_fragments,
    nci_rows,
    published_rows,
)
from xlm.tasks.safe.metrics import DeNovoMetrics, FragmentMetrics, mean_distance
from xlm.tasks.safe.tokenizer import PATTERN, SafeTokenizer, make_vocabulary, split_safe

__all__ = [
    "PATTERN",
    "DeNovoMetrics",
    "FragmentMetrics",
    "SafeTokenizer",
    "attachment_points",
    "encode_fragments",
    "encode_safe",
    "encode_smiles",
    "given_fragments",
    "make_vocabulary",
    "mean_distance",
    "nci_rows",
    "published_rows",
    "split_safe",
]
