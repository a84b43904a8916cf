"""Tokenizers: numbers for synthetic tasks, pretrained ones from the Hub or a folder, and trained ones."""

from xlm.tasks.tokenizers.numbers import SPECIAL_TOKENS, NumberTokenizer
from xlm.tasks.tokenizers.pretrained import ROLES, PretrainedTokenizer
from xlm.tasks.tokenizers.trained import TrainedTokenizer, train_bpe

__all__ = [
    "ROLES",
    "SPECIAL_TOKENS",
    "NumberTokenizer",
    "PretrainedTokenizer",
    "TrainedTokenizer",
    "train_bpe",
]
