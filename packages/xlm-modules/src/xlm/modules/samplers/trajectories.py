"""Generations and the log-probabilities of what they drew, with gradient.

The gradient of an expected reward E[R] is E[R * gradient of the log-probability of the trajectory]. Draws
that do not depend on the network (order of the cells, times, what is masked again) have no gradient and do
not count. Where the network decides the order, E[R] jumps at ties of the scores, which no gradient shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from xlm.modules.records import (
    FullTrace,
    FullyTracedPrediction,
    Trace,
    TracedPrediction,
    TrajectoryLogProbs,
    UserEdit,
)
from xlm.modules.samplers.automata import Automaton
from xlm.modules.samplers.canvas import Denoiser, PromptBatch, Text
from xlm.modules.samplers.constraints import Constrained, refuse_constrained
from xlm.modules.samplers.sampler import Filled, Sampler, fill
from xlm.modules.sampling import TokenSampling
from xlm.modules.writer import Draw, Notes, Recorded, Writer


@dataclass(frozen=True)
class Generation:
    """What generates the texts that are scored."""

    sampler: Sampler
    denoiser: Denoiser
    sampling: TokenSampling
    end_ids: Sequence[int]
    """The ids that end a text."""
    eos_id: int | None
    pad_id: int
    window_length: int | None = None
    stride: int | None = None
    constraint: Automaton | None = None
    """What the texts have to be."""
    keeps_states: ClassVar[bool] = False
    """Whether evaluations use what earlier ones of the text left behind, so that their order matters."""

    def write(self, batch: PromptBatch, seeds: Int[Tensor, " rows"]) -> tuple[Text, Filled, Tensor | None]:
        """The texts of a batch, what they took, and of constrained ones the log-weights (rows,) in nats.

        Raises:
            ValueError: If a row has no text that is allowed.
        """
        text = Text.of(batch, self.denoiser.vocabulary)
        if self.constraint is None:
            return text, self.fill(text, Draw(self.sampling), seeds), None
        writer = Constrained(self.sampling, self.constraint, text)
        return text, self.fill(text, writer, seeds), writer.log_weight

    def fill(
        self, text: Text, writer: Writer, seeds: Int[Tensor, " rows"], edit: UserEdit | None = None
    ) -> Filled:
        """Write the masks of a text, with an edit of the user if there is one."""
        return fill(
            text,
            self.sampler,
            self.denoiser,
            writer,
            seeds,
            window_length=self.window_length,
            stride=self.stride,
            edit=edit,
        )


def refuse_unscored(generation: Generation, what: str) -> None:
    """Refuse a generation whose order of the cells depends on drawn tokens, or that is constrained.

    Raises:
        ValueError: If it is one.
    """
    sampler = generation.sampler
    if sampler.order == "tokens":
        raise ValueError(
            f"{what} has no likelihood by replay under rank={sampler.rank} with revise={sampler.revise}, "
            "which depend on drawn tokens: take a rank by the network's own probabilities, such as "
            "rank=top_prob, and no revision or a planned one"
        )
    refuse_constrained(generation.constraint, f"{what} has no likelihood by replay")


def record(generation: Generation, batch: PromptBatch, seeds: Int[Tensor, " rows"]) -> FullyTracedPrediction:
    """Generate with every edit and its probability.

    Raises:
        ValueError: If the order of the cells depends on drawn tokens, most of which make no edit, or there is
            a constraint.
    """
    refuse_unscored(generation, "a trajectory")
    recorded = Recorded(generation.sampling)
    text = Text.of(batch, generation.denoiser.vocabulary)
    filled = generation.fill(text, recorded, seeds)
    ids, lengths = text.targets(generation.pad_id)
    trace = text.trace(filled.edits, text.cells.sum(1))
    full = FullTrace(
        **vars(trace),
        log_prob=_at_draws(trace, generation, recorded.notes.log_prob),
        entropy=_at_draws(trace, generation, recorded.entropy),
        place_log_prob=torch.zeros(len(seeds), dtype=torch.float64, device=seeds.device),
    )
    calls = filled.nfe if generation.denoiser.prompts is None else filled.nfe + 1
    return FullyTracedPrediction(ids=ids, lengths=lengths, nfe=filled.nfe, trace=full, calls=calls)


def fork(
    generation: Generation, batch: PromptBatch, seeds: Int[Tensor, " rows"], edit: UserEdit
) -> TracedPrediction:
    """Generate with an edit of the user, and the same noise: up to its step nothing changes.

    Raises:
        ValueError: If there is a constraint, the row has no such step, the cell is not shown then,
            or the token is MASK.
    """
    refuse_constrained(generation.constraint, "a text with an edit may not be allowed")
    text = Text.of(batch, generation.denoiser.vocabulary)
    filled = generation.fill(text, Draw(generation.sampling), seeds, edit)
    ids, lengths = text.targets(generation.pad_id)
    calls = filled.nfe if generation.denoiser.prompts is None else filled.nfe + 1
    trace = text.trace(filled.edits, lengths)
    return TracedPrediction(ids=ids, lengths=lengths, nfe=filled.nfe, trace=trace, calls=calls)


def trajectory_log_probs(
    generation: Generation, batch: PromptBatch, trace: Trace, seeds: Int[Tensor, " rows"]
) -> TrajectoryLogProbs:
    """Log-probabilities of the tokens of a full trace, with gradient.

    Args:
        generation: What made it.
        batch: Of the generation.
        trace: All its edits.
        seeds: Those of the generation.

    Raises:
        ValueError: If the sampler with these seeds writes other cells than the trace.
    """
    refuse_unscored(generation, "a trajectory")
    drawn = _is_drawn(trace, generation)
    column = trace.position + batch["target_start"][trace.row]
    follow = _Follow(generation.sampling, trace.row[drawn], column[drawn], trace.token[drawn])
    generation.fill(Text.of(batch, generation.denoiser.vocabulary), follow, seeds)
    log_prob = _at_draws(trace, generation, follow.notes.log_prob)
    return TrajectoryLogProbs(log_prob=log_prob, place_log_prob=log_prob.new_zeros(len(seeds)))


def _is_drawn(trace: Trace, generation: Generation) -> Tensor:
    """(edits,) True at tokens of the network, in the order of its draws."""
    return (trace.step > 0) & (trace.token != generation.denoiser.mask_id)


def _at_draws(trace: Trace, generation: Generation, noted: Sequence[Tensor]) -> Tensor:
    """(edits,) what was noted of all draws, in their order, at their edits; 0 elsewhere."""
    found = torch.zeros(len(trace.row), dtype=torch.float64, device=trace.row.device)
    return found.masked_scatter(_is_drawn(trace, generation), torch.cat(list(noted))) if noted else found


@dataclass
class _Follow:
    """Writes the tokens of a trace, in order."""

    sampling: TokenSampling
    row: Tensor
    column: Tensor
    token: Tensor
    notes: Notes = field(default_factory=Notes)
    number: int = 0

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """The next tokens."""
        now = slice(self.number, self.number + len(row))
        self.number += len(row)
        if not (torch.equal(self.row[now], row) and torch.equal(self.column[now], column)):
            raise ValueError("the trace is not one of this sampler with these seeds: it writes other cells")
        tokens = self.token[now]
        self.notes.add(row, column, self.sampling.score(logits, tokens))
        return tokens

    def note_gap(self, row: Tensor, gap: Callable[[], Tensor], /) -> None:
        """Nothing is noted."""
