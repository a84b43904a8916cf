"""Building blocks of non-autoregressive language models in plain PyTorch."""

from xlm.modules.cache import BlockCache, Columns, KeyValueCache, PromptCache
from xlm.modules.cell_loss import CellLoss, CellLosses, linear_cell_loss
from xlm.modules.dit import DiT, DiTBlock, TimestepEmbedding
from xlm.modules.examples import (
    check_examples,
    check_lengths,
    check_vocabulary,
    fixed_of,
    places_of,
    seeds_of,
    segment_ids_of,
)
from xlm.modules.masks import MaskPiece, PiecewiseMask, segment_mask, takes_piecewise_mask
from xlm.modules.optimizers import FusedAdamW, MuonWithAdamW
from xlm.modules.options import require
from xlm.modules.random import row_seeds, stratified_times, uniform
from xlm.modules.rotary import apply_rotary, rotary_angles
from xlm.modules.samplers.ranks import confidence, take_top, unmask_counts
from xlm.modules.sampling import (
    TokenSampling,
    apply_temperature,
    at_least_float32,
    categorical,
    entropy,
    filter_top_k,
    filter_top_p,
    suppress_tokens,
)
from xlm.modules.schedules import (
    Cosine,
    CosineSquared,
    Geometric,
    Linear,
    LogLinear,
    NoiseSchedule,
    Polynomial,
    Sine,
)
from xlm.modules.sums import add_sums
from xlm.modules.token_head import (
    Readout,
    TokenScores,
    TokenTargets,
    call_with_readout,
    cross_entropy_of_logits,
    linear_cross_entropy,
    logits_in_pieces,
    read_tokens,
    takes_readout,
)
from xlm.modules.transformer import (
    FeedForward,
    RotaryAttention,
    RotaryBlock,
    RotaryTransformer,
)
from xlm.modules.trunk import CausalTrunk, ConditionedTrunk, Trunk, prompt_mask, prompt_sees_target
from xlm.modules.writer import Draw, Force, Notes, Recorded, Writer, check_draws, draw_places, seeds_of_draw

__all__ = [
    "BlockCache",
    "CausalTrunk",
    "CellLoss",
    "CellLosses",
    "Columns",
    "ConditionedTrunk",
    "Cosine",
    "CosineSquared",
    "DiT",
    "DiTBlock",
    "Draw",
    "FeedForward",
    "Force",
    "FusedAdamW",
    "Geometric",
    "KeyValueCache",
    "Linear",
    "LogLinear",
    "MaskPiece",
    "MuonWithAdamW",
    "NoiseSchedule",
    "Notes",
    "PiecewiseMask",
    "Polynomial",
    "PromptCache",
    "Readout",
    "Recorded",
    "RotaryAttention",
    "RotaryBlock",
    "RotaryTransformer",
    "Sine",
    "TimestepEmbedding",
    "TokenSampling",
    "TokenScores",
    "TokenTargets",
    "Trunk",
    "Writer",
    "add_sums",
    "apply_rotary",
    "apply_temperature",
    "at_least_float32",
    "call_with_readout",
    "categorical",
    "check_draws",
    "check_examples",
    "check_lengths",
    "check_vocabulary",
    "confidence",
    "cross_entropy_of_logits",
    "draw_places",
    "entropy",
    "filter_top_k",
    "filter_top_p",
    "fixed_of",
    "linear_cell_loss",
    "linear_cross_entropy",
    "logits_in_pieces",
    "places_of",
    "prompt_mask",
    "prompt_sees_target",
    "read_tokens",
    "require",
    "rotary_angles",
    "row_seeds",
    "seeds_of",
    "seeds_of_draw",
    "segment_ids_of",
    "segment_mask",
    "stratified_times",
    "suppress_tokens",
    "take_top",
    "takes_piecewise_mask",
    "takes_readout",
    "uniform",
    "unmask_counts",
]
