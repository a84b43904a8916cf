"""Building blocks of non-autoregressive language models in plain PyTorch."""

from xlm.modules.random import row_seeds, uniform
from xlm.modules.rotary import apply_rotary, rotary_angles
from xlm.modules.sampling import apply_temperature, categorical, filter_top_k, filter_top_p, sample_tokens
from xlm.modules.schedules import Cosine, LogLinear
from xlm.modules.transformer import (
    FeedForward,
    RotaryAttention,
    RotaryBlock,
    RotaryTransformer,
    segment_mask,
)

__all__ = [
    "Cosine",
    "FeedForward",
    "LogLinear",
    "RotaryAttention",
    "RotaryBlock",
    "RotaryTransformer",
    "apply_rotary",
    "apply_temperature",
    "categorical",
    "filter_top_k",
    "filter_top_p",
    "rotary_angles",
    "row_seeds",
    "sample_tokens",
    "segment_mask",
    "uniform",
]
