"""Rows while they are written: evaluates the network, and draws the next token of each free cell.

The token of a cell depends on its row's seed, the turn and the column, so that a row comes out the same
beside any others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from xlm.modules import TokenSampling, entropy, logits_in_pieces, uniform
from xlm.modules.records import INSERT, FullTrace, Trace, edits_of_step
from xlm_udlm.posterior_udlm import own_token_bonus
from xlm_udlm.samplers_udlm import Step
from xlm_udlm.types_udlm import Output, UDLMNetwork, UDLMPromptBatch, noise_of_alpha, read_cells
from xlm_udlm.vocabulary_udlm import CellVocabulary

_STREAM_PRIOR = 0
_STREAM_TOKENS = 1
_STREAM_CHOICE = 2
_BELOW_ONE = math.nextafter(1.0, 0.0)

Choose = Callable[[Float[Tensor, "piece vocab"], Int[Tensor, " piece"]], Int[Tensor, " piece"]]
"""Next tokens of some free cells, from their logits and their numbers among all free cells."""


@dataclass(frozen=True)
class Canvas:
    """Rows (rows, length) that are written in place, and their free cells (cells,)."""

    vocabulary: CellVocabulary
    sampling: TokenSampling
    output: Output
    batch: UDLMPromptBatch
    seeds: Int[Tensor, " rows"]
    ids: Int[Tensor, "rows length"]
    row: Int[Tensor, " cells"]
    column: Int[Tensor, " cells"]
    may_end: Bool[Tensor, " cells"]
    num_possible: Int[Tensor, " cells"]

    @staticmethod
    def of(
        vocabulary: CellVocabulary,
        sampling: TokenSampling,
        output: Output,
        batch: UDLMPromptBatch,
        seeds: Int[Tensor, " rows"],
    ) -> "Canvas":
        """The rows of a batch, which is not changed, with uniform noise at the free cells."""
        row, column = batch["free"].nonzero(as_tuple=True)
        may_end = batch["may_end"][row, column]
        canvas = Canvas(
            vocabulary=vocabulary,
            sampling=sampling,
            output=output,
            batch=batch,
            seeds=seeds,
            ids=batch["input_ids"].clone(),
            row=row,
            column=column,
            may_end=may_end,
            num_possible=vocabulary.num_possible(may_end),
        )
        drawn = canvas.uniforms(0, _STREAM_PRIOR)
        canvas.ids[row, column] = vocabulary.uniform_tokens(drawn, may_end)
        return canvas

    @property
    def tokens(self) -> Int[Tensor, " cells"]:
        """The token of each free cell now."""
        return self.ids[self.row, self.column]

    def uniforms(self, turn: int, stream: int) -> Float64[Tensor, " cells"]:
        """One number in (0, 1) for each free cell."""
        return uniform(self.seeds, self.ids.shape[1], step=turn, stream=stream)[self.row, self.column]

    def cells_of(self, step: Step, turn: int) -> Int[Tensor, " chosen"]:
        """The free cells that a step may change: all of them, or one of each row."""
        if not step.gibbs:
            return torch.arange(len(self.row), device=self.row.device)
        number = self.batch["free"].sum(1)
        first = number.cumsum(0) - number
        drawn = uniform(self.seeds, 1, step=turn, stream=_STREAM_CHOICE)[:, 0]
        return (first + (drawn * number).long())[number > 0]

    def evaluate(self, model: UDLMNetwork, step: Step, cells: Int[Tensor, " chosen"], choose: Choose) -> None:
        """Evaluate the network once on the rows that have free cells, and write what is chosen.

        Args:
            model: The network.
            step: The step.
            cells: Numbers of the free cells concerned.
            choose: Gives their next tokens, a piece after another. Logits are -inf at impossible tokens, and
                those of the leave-one-out prediction.
        """
        rows, index = torch.unique(self.row[cells], return_inverse=True)
        alpha = torch.full((len(rows),), step.known_alpha, dtype=torch.float64, device=rows.device)

        def read(hidden: Tensor, head: nn.Module) -> Tensor:
            chosen: list[Tensor] = []
            done = 0
            for logits in logits_in_pieces(hidden, head):
                piece = cells[done : done + len(logits)]
                self.vocabulary.restrict_(logits, self.may_end[piece])
                if self.output == "denoiser":
                    own = self.tokens[piece].unsqueeze(1)
                    logits.scatter_add_(1, own, -self._own_bonus(step.known_alpha, piece).to(logits.dtype))
                chosen.append(choose(logits, piece))
                done += len(piece)
            return torch.cat(chosen)

        tokens = read_cells(
            model,
            read,
            self.ids[rows],
            self.batch["attention_mask"][rows],
            noise_of_alpha(alpha),
            positions=index * self.ids.shape[1] + self.column[cells],
        )
        self.ids[self.row[cells], self.column[cells]] = tokens

    def draw(
        self, step: Step, turn: int, logits: Float[Tensor, "piece vocab"], piece: Int[Tensor, " piece"]
    ) -> Int[Tensor, " piece"]:
        """Draw the next tokens of some cells, or take the most probable ones of the denoiser.

        Args:
            step: The step.
            turn: Its number, from 1, which no other step has.
            logits: Leave-one-out logits, -inf at impossible tokens.
            piece: Numbers of the cells.
        """
        own = self.tokens[piece]
        if step.greedy:
            return self._most_probable(step, logits, piece)
        mixture = step.mixture(self.sampling.score(logits, own).exp(), self.num_possible[piece])
        u = self.uniforms(turn, _STREAM_TOKENS)[piece]
        # One number decides the part of the mixture, and where in this part it lies, the token.
        moves = u >= mixture.keep
        is_noise = moves & (mixture.noise > 0) & (u < mixture.keep + mixture.noise)
        is_prediction = moves & ~is_noise & (mixture.predict > 0)
        place = ((u - mixture.keep) / mixture.noise).where(is_noise, 0.5)
        tokens = self.vocabulary.uniform_tokens(place, self.may_end[piece]).where(is_noise, own)
        place = ((u - mixture.keep - mixture.noise) / mixture.predict)[is_prediction].clamp(0, _BELOW_ONE)
        tokens[is_prediction] = self.sampling.draw(logits[is_prediction], place)
        return tokens

    def describe(
        self,
        step: Step,
        logits: Float[Tensor, "piece vocab"],
        piece: Int[Tensor, " piece"],
        tokens: Int[Tensor, " piece"],
    ) -> tuple[Float64[Tensor, " piece"], Float64[Tensor, " piece"]]:
        """Nats with which :meth:`draw` draws tokens of some cells, and the entropy of their distributions.

        Both are 0 in a greedy step.
        """
        own, number = self.tokens[piece], self.num_possible[piece]
        if step.greedy:
            nothing = torch.zeros_like(own, dtype=torch.float64)
            return nothing, nothing
        p = self.sampling.log_probs(logits).exp()
        mixture = step.mixture(p.gather(1, own.unsqueeze(1)).squeeze(1), number)
        next_p = mixture.predict.unsqueeze(1) * p
        next_p += (mixture.noise / number).unsqueeze(1) * (logits > -math.inf)
        log_probs = next_p.scatter_add_(1, own.unsqueeze(1), mixture.keep.unsqueeze(1)).log()
        return log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1), entropy(log_probs)

    def targets(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """The texts (rows, width) up to their ends, padded on the right, and their lengths (rows,)."""
        cells, _ = self._cells()
        ended = (self.batch["may_end"] & self.vocabulary.ends(self.ids)).cumsum(1) > 0
        text = cells & ~ended
        lengths = text.sum(1)
        row, column = text.nonzero(as_tuple=True)
        ids = self.ids.new_full((len(lengths), int(lengths.max()) if len(lengths) > 0 else 0), pad_id)
        ids[row, column - self.batch["target_start"][row]] = self.ids[row, column]
        return ids, lengths

    def trace(self, start_ids: Tensor, edits: Sequence[Tensor], lengths: Tensor) -> Trace:
        """Insertions that build the start, then ``edits``, without those behind the end of the final text.

        Args:
            start_ids: The rows as they were before the first step, (rows, length).
            edits: Tables (5, edits) of :func:`xlm.modules.records.edits_of_step`, with columns of the rows as
                positions.
            lengths: Lengths of the targets, (rows,).
        """
        cells, position = self._cells()
        row, column = (cells & (position < lengths.unsqueeze(1))).nonzero(as_tuple=True)
        start = edits_of_step(0, INSERT, row, column, start_ids[row, column])
        step, row, operation, column, token = torch.cat([start, *edits], dim=1)
        place = column - self.batch["target_start"][row]
        return Trace(*torch.stack([step, row, operation, place, token])[:, place < lengths[row]])

    @property
    def num_cells(self) -> Int[Tensor, " rows"]:
        """Cells of each row, given ones included."""
        return self._cells()[0].sum(1)

    def _cells(self) -> tuple[Tensor, Tensor]:
        """(rows, length) True at the cells of each row, and the number of each column among them."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device)
        position = column - self.batch["target_start"].unsqueeze(1)
        return self.batch["attention_mask"] & (position >= 0), position

    def _most_probable(self, step: Step, logits: Tensor, piece: Tensor) -> Tensor:
        log_p = self.sampling.log_probs(logits)
        own = self.tokens[piece].unsqueeze(1)
        return log_p.scatter_add_(1, own, self._own_bonus(step.alpha_t, piece)).argmax(1)

    def _own_bonus(self, alpha: float, piece: Tensor) -> Tensor:
        number = self.num_possible[piece].unsqueeze(1)
        return own_token_bonus(torch.full_like(number, 1 - alpha, dtype=torch.float64), number)


@dataclass(frozen=True)
class Notes:
    """Log-probabilities of the draws of a generation."""

    canvas: Canvas
    now: Float64[Tensor, "2 cells"]
    """Nats of the newest draw of each free cell, and entropy of what it was drawn from."""
    place_log_prob: Float64[Tensor, " rows"]
    """Nats of the cells that drew their own token, so far."""
    edits: list[Float64[Tensor, "2 edits"]]
    """Nats and entropies of the others, a table for each turn."""

    @staticmethod
    def of(canvas: Canvas) -> "Notes":
        """Nothing is drawn yet."""
        now = torch.zeros(2, len(canvas.row), dtype=torch.float64, device=canvas.ids.device)
        return Notes(canvas, now, now.new_zeros(len(canvas.ids)), [])

    def draw(self, step: Step, turn: int, logits: Tensor, piece: Tensor) -> Tensor:
        """:meth:`Canvas.draw`, with notes."""
        tokens = self.canvas.draw(step, turn, logits, piece)
        self.now[:, piece] = torch.stack(self.canvas.describe(step, logits, piece, tokens))
        return tokens

    def add(self, changed: Bool[Tensor, " cells"], drawn: Int[Tensor, " chosen"]) -> None:
        """Add the cells that a turn has drawn, by whether they changed."""
        kept = drawn[~changed[drawn]]
        self.place_log_prob.index_add_(0, self.canvas.row[kept], self.now[0, kept])
        self.edits.append(self.now[:, changed])

    def full(self, trace: Trace) -> FullTrace:
        """The trace of all edits, with what was noted; those of step 0 are not drawn from the network."""
        start = self.now.new_zeros(2, int((trace.step == 0).sum()))
        log_prob, entropies = torch.cat([start, *self.edits], dim=1)
        return FullTrace(
            **vars(trace), log_prob=log_prob, entropy=entropies, place_log_prob=self.place_log_prob
        )
