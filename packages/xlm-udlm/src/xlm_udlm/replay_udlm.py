"""The likelihood of a sampler: an upper bound of -log of the probability with which it writes a text.

The probability p(x) of a text under N steps is a sum over all paths of states that lead to it, which no
enumeration reaches. But for any distribution r of paths that start from x and go back to the noise,

    p(x) = E_r[ w ],    w = p(x_1) prod over steps of p(x_s | x_t) / r(x_t | x_s),

so w is an unbiased estimate of p(x), and -log of a mean of draws of w is an upper bound of -log p(x) in
expectation (arXiv:1509.00519); with one draw its expectation is the discrete-time bound of diffusion models.
Here r is the forward process of each cell, for corrected steps the time reversal of the corrected process:

    r(x_t | x_s) = kappa q(x_t | x_s) + (1 - kappa) q(x_t | x).

p(x_s | x_t) is the sampler's own step with all its filters. What stands behind the end of a text is not
known: those cells are drawn by the sampler itself and have no factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from xlm.modules import TokenSampling, check_draws, check_vocabulary, seeds_of_draw
from xlm.modules.records import Event, SamplerLikelihood, Targets
from xlm_udlm.canvas_udlm import Canvas
from xlm_udlm.samplers_udlm import Step
from xlm_udlm.types_udlm import Output, UDLMNetwork, UDLMPromptBatch
from xlm_udlm.vocabulary_udlm import CellVocabulary

_STREAM_END = 10
_STREAM_KEPT = 11
_STREAM_FRESH = 12
_STREAM_NOISED = 13
_STREAM_TOKEN = 14


def sampler_likelihood(
    model: UDLMNetwork,
    steps: Sequence[Step],
    vocabulary: CellVocabulary,
    sampling: TokenSampling,
    output: Output,
    batch: UDLMPromptBatch,
    targets: Targets,
    seeds: Tensor,
    *,
    end_ids: tuple[int, int],
    num_draws: int,
    event: Event,
) -> SamplerLikelihood:
    """Bound -log p(text) by replays of the sampler on paths of the forward process.

    Args:
        model: The network.
        steps: Those of the sampler.
        vocabulary: Which tokens are possible.
        sampling: Temperature and filters.
        output: What the network's logits are.
        batch: The given parts.
        targets: The texts, their given tokens included.
        seeds: (rows,) the source of all draws.
        end_ids: The token that ends a text, and PAD behind it, which ``event="cells"`` scores.
        num_draws: Replays of each text.
        event: "text": the text up to its end, by whichever token ends it. "cells": also PAD in all cells
            behind EOS, as training rows have it.

    Raises:
        ValueError: If the sampler has Gibbs moves, an option is outside its range, or a target differs from
            the given tokens of its row.
    """
    check_draws(num_draws, event)
    if any(step.gibbs for step in steps):
        raise ValueError(
            "a sampler with gibbs_moves has no likelihood: set gibbs_moves=0. The bound of the network "
            "itself is that of UDLMLoss.likelihood"
        )
    wanted = _Wanted.of(vocabulary, batch, targets, end_ids, event)
    log_weights = [
        wanted.log_weights(Canvas.of(vocabulary, sampling, output, batch, own_seeds), model, steps)
        for own_seeds in (seeds_of_draw(draw, seeds) for draw in range(num_draws))
    ]
    no_gap = torch.full((len(seeds),), torch.inf, dtype=torch.float64, device=seeds.device)
    return SamplerLikelihood.of(
        torch.stack(log_weights),
        num_tokens=wanted.num_tokens,
        is_exact=False,
        models_length=bool((batch["may_end"] & batch["free"]).any(1).all()),
        smallest_gap=no_gap,
        nfe=batch["free"].any(1) * len(steps) * num_draws,
    )


@dataclass(frozen=True)
class _Wanted:
    """The texts at the free cells (cells,) of a batch, and per-row values (rows,)."""

    ids: Tensor
    known: Tensor
    """False at cells behind the end, whose tokens are not part of the text."""
    is_end: Tensor
    """True at the cell that ends the text, by any of the ids that do."""
    possible: Tensor
    """(rows,) False at texts with too many tokens, or with one that no cell can hold or that ends them."""
    num_tokens: Tensor

    @staticmethod
    def of(
        vocabulary: CellVocabulary,
        batch: UDLMPromptBatch,
        targets: Targets,
        end_ids: tuple[int, int],
        event: Event,
    ) -> "_Wanted":
        """Lay the texts over the cells.

        Raises:
            ValueError: If a target differs from the given tokens of its row.
        """
        check_vocabulary(targets.ids, vocabulary.vocab_size)
        given_ids, free, may_end = batch["input_ids"], batch["free"], batch["may_end"]
        column = torch.arange(free.shape[1], device=free.device)
        place = column - batch["target_start"].unsqueeze(1)
        cells = batch["attention_mask"] & (place >= 0)
        lengths = targets.lengths.unsqueeze(1)
        inside, is_end = cells & (place < lengths), cells & (place == lengths)
        ids = torch.nn.functional.pad(targets.ids, (0, max(free.shape[1] - targets.ids.shape[1], 0)))
        ids = ids.gather(1, place.clamp(min=0)).where(inside, given_ids)
        differs = cells & ~free & ((inside & (ids != given_ids)) | (is_end & ~vocabulary.ends(given_ids)))
        if bool(differs.any()):
            row, number = int(differs.any(1).nonzero()[0]), int(place[differs][0])
            raise ValueError(f"target {row} differs from the given token at position {number}")
        known = inside | is_end
        if event == "cells":
            ids = ids.masked_fill(is_end, end_ids[0]).masked_fill(cells & (place > lengths), end_ids[1])
            known, is_end = cells, torch.zeros_like(is_end)
        # Without a place to end, the end is that of the row and no token ends it.
        wrong = inside & free & (vocabulary.ends(ids) | ~vocabulary.are_possible(ids, may_end))
        wrong |= (place == lengths) & free & ~may_end
        return _Wanted(
            ids=ids[free],
            known=known[free],
            is_end=(is_end & free)[free],
            possible=(targets.lengths <= cells.sum(1)) & ~wrong.any(1),
            num_tokens=targets.lengths - (inside & ~free).sum(1),
        )

    def log_weights(self, canvas: Canvas, model: UDLMNetwork, steps: Sequence[Step]) -> Tensor:
        """(rows,) log w of one path of each row."""
        ends = canvas.vocabulary.end_ids
        drawn = (canvas.uniforms(0, _STREAM_END) * len(ends)).long()
        clean = torch.tensor(ends, device=drawn.device)[drawn].where(self.is_end, self.ids)
        log_weight = torch.zeros(len(clean), dtype=torch.float64, device=clean.device)
        log_weight += self.is_end * torch.tensor(float(len(ends)), dtype=torch.float64).log()
        path = self._path(canvas, steps, clean)
        canvas.ids[canvas.row, canvas.column] = path[-1].where(self.known, canvas.tokens)
        for turn, step in enumerate(steps, start=1) if len(clean) > 0 else ():
            after = path[len(steps) - turn]
            if turn > 1:  # the first step starts from noise, where the prior and r are the same 1 / K
                log_weight -= self.known * _reversed(step, canvas, path[len(steps) - turn + 1], after, clean)
            choose = partial(self._choose, canvas, step, turn, after, log_weight)
            canvas.evaluate(model, step, canvas.cells_of(step, turn), choose)
        rows = torch.zeros(len(canvas.ids), dtype=torch.float64, device=clean.device)
        rows = rows.index_add(0, canvas.row, log_weight)
        return rows.masked_fill(~self.possible, -torch.inf)

    def _choose(
        self,
        canvas: Canvas,
        step: Step,
        turn: int,
        after: Tensor,
        log_weight: Tensor,
        logits: Tensor,
        piece: Tensor,
    ) -> Tensor:
        """The next tokens of some cells; adds log p(x_s | x_t) of those of the text to ``log_weight``."""
        own, wanted, number = canvas.tokens[piece], after[piece], canvas.num_possible[piece]
        drawn = canvas.draw(step, turn, logits, piece)
        if step.greedy:
            log_prob = torch.where(drawn == wanted, 0.0, -torch.inf).to(torch.float64)
        else:
            mixture = step.mixture(canvas.sampling.score(logits, own).exp(), number)
            log_prob = mixture.log_prob(canvas.sampling.score(logits, wanted), own == wanted, number)
        log_weight[piece] += log_prob.masked_fill(~self.known[piece], 0.0)
        return wanted.where(self.known[piece], drawn)

    def _path(self, canvas: Canvas, steps: Sequence[Step], clean: Tensor) -> list[Tensor]:
        """States (cells,) of the forward process, from the clean tokens to the noise."""
        path = [clean]
        for number, step in enumerate(reversed(steps), start=1):
            kept, fresh, noised, token = (
                canvas.uniforms(number, stream)
                for stream in (_STREAM_KEPT, _STREAM_FRESH, _STREAM_NOISED, _STREAM_TOKEN)
            )
            random = canvas.vocabulary.uniform_tokens(token, canvas.may_end)
            moved = path[-1].where(kept < step.alpha_t / step.alpha_s, random)
            again = clean.where(noised < step.alpha_t, random)
            path.append(moved.where(fresh < step.kappa, again))
        return path


def _reversed(step: Step, canvas: Canvas, before: Tensor, after: Tensor, clean: Tensor) -> Tensor:
    """(cells,) log r(x_t | x_s), of the token before a step given the one after it."""
    share, kept = 1.0 / canvas.num_possible.double(), step.alpha_t / step.alpha_s
    process = kept * (before == after) + (1 - kept) * share
    marginal = step.alpha_t * (before == clean) + (1 - step.alpha_t) * share
    return (step.kappa * process + (1 - step.kappa) * marginal).log()
