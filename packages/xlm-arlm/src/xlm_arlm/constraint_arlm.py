"""Texts of an automaton: tokens after which no allowed text remains are forbidden, and rows are weighed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.modules import TokenSampling, suppress_tokens
from xlm.modules.samplers import Automaton, ConstrainedFromLeft
from xlm_arlm.types_arlm import ARLMPromptBatch


@dataclass(frozen=True)
class NextTokens:
    """The token ids that can follow, for :class:`xlm.modules.samplers.CellTokens`."""

    suppressed_ids: Sequence[int]
    eos_id: int | None

    def restrict(
        self, logits: Float[Tensor, "cells vocab"], may_end: Bool[Tensor, " cells"], /
    ) -> Float[Tensor, "cells vocab"]:
        """Logits with -inf at suppressed ids, and at EOS where no text ends."""
        possible = suppress_tokens(logits, self.suppressed_ids)
        if self.eos_id is not None:
            possible[:, self.eos_id] = logits[:, self.eos_id].masked_fill(~may_end, -math.inf)
        return possible

    def ends(self, ids: Tensor, /) -> Tensor:
        """True at EOS, of any shape."""
        return torch.zeros_like(ids, dtype=torch.bool) if self.eos_id is None else ids == self.eos_id


def constrained_writer(
    batch: ARLMPromptBatch,
    budget: Int[Tensor, " rows"],
    sampling: TokenSampling,
    constraint: Automaton,
    vocabulary: NextTokens,
) -> ConstrainedFromLeft:
    """The writer of the targets that an automaton allows; fixed tokens belong to them.

    Raises:
        ValueError: If a row has no target that is allowed.
    """
    length = batch["input_ids"].shape[1]
    column = torch.arange(length, device=budget.device)
    return ConstrainedFromLeft(
        sampling,
        constraint,
        vocabulary,
        budget,
        ends=vocabulary.eos_id is not None,
        given=batch["input_ids"],
        is_given=column >= length - batch["num_fixed"].unsqueeze(1),
    )
