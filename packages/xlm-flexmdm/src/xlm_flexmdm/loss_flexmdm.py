"""The training objective of FlexMDM and its likelihood bound.

With f_j the distribution of the token at masked cell j and g_i the expected number of absent tokens in slot i
that the network gives for x_t, and D(x, y) = y - x + x log(x / y), a row at time t has (Kim et al. 2025,
arXiv:2509.01025, section 4)

    unmasking = beta'(t) / (1 - beta(t)) sum_{masked j} -log f_j(clean token)
    insertion = alpha'(t) / (1 - alpha(t)) sum_{open i} D(gap_i, g_i).

Minimisers are f_j = P(clean token of j | x_t) and g_i = E[gap_i | x_t]. A network with a distribution over
gap lengths is trained with its cross-entropy in place of D, weighted slot by slot (the published code weights
the mean over slots by the sum of the weights); its minimiser is the posterior, with the same mean.

The clean token of a cell and the gap of a slot are those of the sampled path to x_t. Their distributions
over all paths, given x_t and x_1, are known (:mod:`xlm_flexmdm.posterior_flexmdm`). With these as targets the
gradient has the same expectation and less noise: the sampled path no longer matters (Rao-Blackwell).

Logits are computed at masked cells, gaps at open slots, and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xlm.modules import TokenScores, TokenTargets, at_least_float32, check_vocabulary, linear_cross_entropy
from xlm_flexmdm.posterior_flexmdm import embedding_posterior, expected_gaps
from xlm_flexmdm.types_flexmdm import (
    FlexMDMBatch,
    FlexMDMLikelihood,
    FlexMDMLossOutput,
    FlexMDMNetwork,
    FlexMDMOutput,
    call_model,
)

Targets = Literal["drawn", "posterior"]


def gap_divergence(x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """D(x, y) = y - x + x log(x / y), the divergence of Poisson distributions with means x and y.

    D(0, y) = y.

    Args:
        x: True means, at least 0, any shape.
        y: Predicted means, at least 0, same shape. Its logarithm is bounded, so that a mean of 0 for
            something that comes has a large but finite divergence; nothing else is.

    Returns:
        Divergence in nats, at least 0, with equality where x = y.
    """
    return y - x + torch.xlogy(x, x) - x * y.clamp(min=torch.finfo(y.dtype).tiny).log()


class FlexMDMLoss:
    """Sum over rows of unmasking + insertion, in nats; the normaliser is the number of target tokens.

    The published loss has the same sum over (rows * max_length). Real tokens are the count here, so that the
    loss is in nats per token, does not depend on a limit, and compares with the other families'.

    Args:
        mask_id: Id of MASK, which has probability 0. The published softmax does not leave it out.
        suppressed_ids: Further token ids that never stand in a target and have probability 0: those of the
            predictor.
        targets: "drawn": the clean tokens and gaps of the sampled path, as published. "posterior":
            their distribution and mean over all paths to x_t, so the terms are KL(q_j || f_j) and D(G_i, g_i)
            of :meth:`likelihood`, and a distribution over gap lengths is trained through its mean. It takes a
            table of rows * target^2 numbers and a loop over the target's columns.

    Raises:
        ValueError: If targets is neither of the two.
    """

    def __init__(
        self, *, mask_id: int, suppressed_ids: Sequence[int] = (), targets: Targets = "drawn"
    ) -> None:
        if targets not in ("drawn", "posterior"):
            raise ValueError(f"targets must be 'drawn' or 'posterior', got {targets!r}")
        self._suppressed_ids = sorted({mask_id, *suppressed_ids})
        self._targets = targets

    def __call__(self, model: FlexMDMNetwork, batch: FlexMDMBatch) -> FlexMDMLossOutput:
        """Evaluate the network on a batch.

        Raises:
            ValueError: If a target token is MASK or among suppressed_ids, or a drawn gap is too long for the
                network (on a device the first makes the loss infinite, the second is an error of the device).
        """
        cells, slots = _places(batch)
        clean_ids = cells.read(batch["clean_ids"])
        weight = batch["unmasking_weight"][cells.row]
        if self._targets == "posterior":
            posterior = _Posterior.of(batch, cells, slots)
            targets = posterior.targets(cells, weight)
        else:
            posterior, targets = None, TokenTargets(token=clean_ids, weight=weight)
        scores, output = self._evaluate(model, batch, cells, slots, targets, wants_best=True)
        if posterior is None:
            unmasking_sum, gap_terms = scores.loss, _gap_terms(output, slots.read(batch["gaps"]))
        else:
            unmasking_sum = scores.loss + (weight * posterior.negative_entropies()).sum()
            gap_terms = gap_divergence(posterior.mean_gaps, _expected_gaps(output))
        insertion_sum = (batch["insertion_weight"] * slots.sum_by_row(gap_terms)).sum()
        return FlexMDMLossOutput(
            loss_sum=unmasking_sum + insertion_sum,
            loss_count=batch["num_missing"].sum(),
            terms={"unmasking": unmasking_sum, "insertion": insertion_sum},
            num_masked=batch["masked"].sum(),
            num_correct=(scores.best == clean_ids).sum(),
        )

    def likelihood(self, model: FlexMDMNetwork, batch: FlexMDMBatch) -> FlexMDMLikelihood:
        """Estimate an upper bound of -log p(x_1), tighter than the training loss.

        The process x_t given x_1 is a Markov chain itself: the embedding of x_t in x_1 is uniform, whatever
        the way to x_t. Its rates are those of an embedding averaged over embeddings, so with q_j the
        distribution of the token at j and G_i the mean of gap_i, both given x_t and x_1, the divergence of
        its paths from the network's is

            E_t E_{x_t} [ beta' / (1 - beta) sum_j KL(q_j || f_j) + alpha' / (1 - alpha) sum_i D(G_i, g_i) ]

        which bounds -log p(x_1). The published form, with the token and the gap of one embedding drawn at
        random, bounds it as well (``nll_published``), but charges for which embedding it was: for a network
        that knows x_1 it is not 0. Averaged over the data, and with the exact posterior as the network, the
        bound is their entropy. A distribution over gap lengths enters with its mean g, all that its Poisson
        insertions depend on.

        The bound is that of the process in continuous time, to which the samplers converge. Its mean is
        finite only if g vanishes for t -> 1 like 1 - alpha, which :class:`xlm_flexmdm.FlexMDM` sees to.

        Raises:
            ValueError: If a schedule does not run from 0 to 1, or a target token is MASK or among
                suppressed_ids.
        """
        if not bool(batch["is_complete"]):
            raise ValueError(
                "no likelihood: alpha and beta must run from 0 at t = 0 to 1 at t = 1. Otherwise tokens are "
                "there from the start, or never come, which the bound does not see. LogLinear and Cosine "
                "need eps=0; Linear and Geometric never fit"
            )
        num_draws = int(batch["num_draws"])
        nll = torch.zeros_like(batch["time"]).view(-1, num_draws)
        nll_published = torch.zeros_like(nll)
        # One draw after the other, so that evaluation needs no more memory than training.
        for draw in range(num_draws):
            rows = _take(batch, slice(draw, None, num_draws))
            nll[:, draw], nll_published[:, draw] = self._bounds(model, rows)
        return FlexMDMLikelihood(
            nll=nll.mean(1),
            num_tokens=batch["num_missing"][::num_draws],
            nll_kind="bound",
            num_draws=num_draws,
            models_length=True,
            nll_published=nll_published.mean(1),
        )

    def _bounds(self, model: FlexMDMNetwork, batch: FlexMDMBatch) -> tuple[Tensor, Tensor]:
        """The tight and the published form of each row (rows,), float64."""
        cells, slots = _places(batch)
        posterior = _Posterior.of(batch, cells, slots)
        possible = posterior.targets(cells, torch.ones_like(cells.row, dtype=torch.float64))
        clean_ids = cells.read(batch["clean_ids"])
        number = torch.arange(len(clean_ids), device=clean_ids.device)
        assert possible.cell is not None
        targets = TokenTargets(
            token=torch.cat((possible.token, clean_ids)),
            weight=torch.cat((possible.weight, torch.ones_like(number))),
            cell=torch.cat((possible.cell, number)),
        )
        scores, output = self._evaluate(model, batch, cells, slots, targets)
        of_possible, of_clean = scores.log_probs.double().split((len(possible.token), len(clean_ids)))
        gaps = _expected_gaps(output)

        tight = batch["unmasking_weight"] * cells.sum_by_row(posterior.divergences(of_possible))
        tight += batch["insertion_weight"] * slots.sum_by_row(gap_divergence(posterior.mean_gaps, gaps))
        published = batch["unmasking_weight"] * cells.sum_by_row(-of_clean)
        published += batch["insertion_weight"] * slots.sum_by_row(
            gap_divergence(slots.read(batch["gaps"]).double(), gaps)
        )
        return tight, published

    def _evaluate(
        self,
        model: FlexMDMNetwork,
        batch: FlexMDMBatch,
        cells: "_Places",
        slots: "_Places",
        targets: TokenTargets,
        *,
        wants_best: bool = False,
    ) -> tuple[TokenScores, FlexMDMOutput]:
        """Score tokens of the cells, MASK and suppressed tokens having probability 0."""
        scored = replace(targets, suppressed_ids=self._suppressed_ids, wants_best=wants_best)
        scores, output = call_model(
            model,
            partial(linear_cross_entropy, targets=scored),
            batch["input_ids"],
            batch["attention_mask"],
            batch["time"],
            batch["missing_chance"],
            token_positions=cells.flat,
            slot_positions=slots.flat,
        )
        self._check_targets(batch, scores.vocab_size)
        return scores, output

    def _check_targets(self, batch: FlexMDMBatch, vocab_size: int) -> None:
        """Refuse targets of probability 0, masked or not; on a device, it would force a synchronisation."""
        ids, fixed = batch["target_ids"], batch["target_fixed"]
        if ids.device.type == "cpu":
            suppressed = torch.tensor(self._suppressed_ids)
            real = torch.arange(ids.shape[1]) < batch["target_lengths"].unsqueeze(1)
            check_vocabulary(ids[real], vocab_size)
            clash = ids[real & ~fixed & torch.isin(ids, suppressed)]
            if len(clash) > 0:
                raise ValueError(
                    f"the targets hold token id {int(clash[0])}, which has probability 0 as MASK or "
                    "one of suppressed_ids"
                )


@dataclass(frozen=True)
class _Places:
    """Listed columns of the rows."""

    row: Tensor
    column: Tensor
    flat: Tensor
    """Index into the rows * length columns."""
    num_rows: int

    @staticmethod
    def of(row: Tensor, column: Tensor, table: Tensor) -> "_Places":
        """The listed columns of a table (rows, length)."""
        return _Places(row, column, row * table.shape[1] + column, len(table))

    def read(self, table: Tensor) -> Tensor:
        """Values of a table (rows, length) at the places."""
        return table[self.row, self.column]

    def sum_by_row(self, values: Tensor) -> Tensor:
        """(rows,) sums of values of the places."""
        return values.new_zeros(self.num_rows).index_add(0, self.row, values)


def _places(batch: FlexMDMBatch) -> tuple[_Places, _Places]:
    """The masked cells and the open slots."""
    table = batch["input_ids"]
    return (
        _Places.of(batch["masked_row"], batch["masked_column"], table),
        _Places.of(batch["slot_row"], batch["slot_column"], table),
    )


@dataclass(frozen=True)
class _Posterior:
    """What a masked cell and an open slot are over all paths to x_t, given x_t and x_1."""

    q: Tensor
    """(cells, target) probability of each target token; equal tokens are added up at the first of them."""
    ids: Tensor
    """(cells, target) the target tokens of the cell's row."""
    mean_gaps: Tensor
    """(slots,) float64."""

    @staticmethod
    def of(batch: FlexMDMBatch, cells: _Places, slots: _Places) -> "_Posterior":
        posterior, mean_gaps = _posterior(batch)
        ids = batch["target_ids"]
        by_index = posterior[cells.row, cells.column - batch["target_start"][cells.row]]
        q = by_index
        if by_index.numel() > 0:  # there may be no target tokens at all
            first = (ids.unsqueeze(2) == ids.unsqueeze(1)).byte().argmax(2)[cells.row]
            q = torch.zeros_like(by_index).scatter_add(1, first, by_index)
        # The slot of BOS is the first of mean_gaps.
        slot = slots.column - batch["target_start"][slots.row] + 1
        return _Posterior(q=q, ids=ids[cells.row], mean_gaps=mean_gaps[slots.row, slot])

    def targets(self, cells: _Places, weight: Tensor) -> TokenTargets:
        """The cross-entropies -q log f, each cell with its weight (cells,)."""
        number = torch.arange(len(self.q), device=self.q.device)
        return TokenTargets(
            token=self.ids.flatten(),
            weight=(weight.unsqueeze(1) * self.q).flatten(),
            cell=number.unsqueeze(1).expand_as(self.q).flatten(),
        )

    def negative_entropies(self) -> Tensor:
        """(cells,) sum of q log q."""
        return torch.xlogy(self.q, self.q).sum(1)

    def divergences(self, log_f: Tensor) -> Tensor:
        """(cells,) KL(q || f) with log f of the ``targets``, in their order."""
        # Without the mask, padding with a suppressed id would add 0 * inf.
        cross = torch.where(self.q > 0, self.q * log_f.view_as(self.q), 0.0)
        return self.negative_entropies() - cross.sum(1)


def _expected_gaps(output: FlexMDMOutput) -> Tensor:
    return at_least_float32(output.expected_gaps).double()


def _gap_terms(output: FlexMDMOutput, gaps: Tensor) -> Tensor:
    """(slots,) D, or the cross-entropy of a distribution over gap lengths."""
    if output.gap_logits is None:
        expected = at_least_float32(output.expected_gaps)
        return gap_divergence(gaps.to(expected.dtype), expected)
    classes = output.gap_logits.shape[1]
    if gaps.device.type == "cpu" and len(gaps) > 0 and int(gaps.max()) >= classes:
        raise ValueError(
            f"a slot misses {int(gaps.max())} tokens, the network has lengths 0..{classes - 1}: "
            "give it a larger max_length"
        )
    return F.cross_entropy(at_least_float32(output.gap_logits), gaps, reduction="none")


def _posterior(batch: FlexMDMBatch) -> tuple[Tensor, Tensor]:
    """P(s_c = i | x_t, x_1) (rows, cells, target) and the mean gaps (rows, cells + 1) of the targets."""
    start = batch["target_start"]
    num_cells = batch["attention_mask"].sum(1) - start
    # Left of the cells stands BOS at least, and there are no more of them than target tokens.
    most = min(batch["input_ids"].shape[1] - 1, batch["target_ids"].shape[1])
    cell = torch.arange(most, device=start.device)
    exists = cell < num_cells.unsqueeze(1)
    column = (start.unsqueeze(1) + cell).clamp(max=batch["input_ids"].shape[1] - 1)
    ids, masked, given = (
        batch[name].gather(1, column).unsqueeze(2) for name in ("input_ids", "masked", "given")
    )
    token = torch.arange(batch["target_ids"].shape[1], device=start.device)
    real = exists.unsqueeze(2) & (token < batch["target_lengths"].unsqueeze(1)).unsqueeze(1)
    # Fixed tokens are all present and in order, so a fixed cell is its own token and no other.
    same = masked | (ids == batch["target_ids"].unsqueeze(1))
    matches = real & same & (given == batch["target_fixed"].unsqueeze(1))
    posterior = embedding_posterior(matches, num_cells)
    return posterior, expected_gaps(posterior, num_cells, batch["target_lengths"])


def _take(batch: FlexMDMBatch, rows: slice) -> FlexMDMBatch:
    """Some rows of a batch."""
    masked_row, masked_column = batch["masked"][rows].nonzero(as_tuple=True)
    slot_row, slot_column = batch["open_slots"][rows].nonzero(as_tuple=True)
    return {
        "input_ids": batch["input_ids"][rows],
        "attention_mask": batch["attention_mask"][rows],
        "given": batch["given"][rows],
        "masked": batch["masked"][rows],
        "masked_row": masked_row,
        "masked_column": masked_column,
        "clean_ids": batch["clean_ids"][rows],
        "open_slots": batch["open_slots"][rows],
        "slot_row": slot_row,
        "slot_column": slot_column,
        "gaps": batch["gaps"][rows],
        "target_start": batch["target_start"][rows],
        "target_ids": batch["target_ids"][rows],
        "target_lengths": batch["target_lengths"][rows],
        "target_fixed": batch["target_fixed"][rows],
        "num_missing": batch["num_missing"][rows],
        "time": batch["time"][rows],
        "missing_chance": batch["missing_chance"][rows],
        "unmasking_weight": batch["unmasking_weight"][rows],
        "insertion_weight": batch["insertion_weight"][rows],
        "num_draws": batch["num_draws"],
        "is_complete": batch["is_complete"],
    }
