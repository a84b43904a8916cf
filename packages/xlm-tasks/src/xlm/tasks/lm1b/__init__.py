"""The One Billion Word Benchmark: single sentences of news."""

from xlm.tasks.lm1b.sentences import detokenise, encode_lm1b

__all__ = ["detokenise", "encode_lm1b"]
