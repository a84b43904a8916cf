"""Where edits come from: they are drawn, also with notes, or those that write a given text are forced."""

import math
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules import draw_places, entropy, row_seeds, uniform
from xlm.modules.records import DELETE, WRITE, Targets
from xlm_editflow.alignment_editflow import BLANK, Alignment, align, pad_texts
from xlm_editflow.choice_editflow import Evaluation, draw_one, draw_step
from xlm_editflow.text_editflow import Edits
from xlm_editflow.times_editflow import Hazard
from xlm_editflow.types_editflow import EditFlowPromptBatch

_STREAM_TIME = 5
_STREAM_PLACES = 0
_STREAM_TIMES = 1
"""The last two are drawn at step 0, before the first evaluation."""


class Choices(Protocol):
    """Gives the edits of ``rows`` of the batch, in the order of the evaluation's rows."""

    def of_step(
        self, evaluation: Evaluation, rows: Tensor, chance: Tensor, seeds: Tensor, step: int, /
    ) -> Edits:
        """The edits of a step in which each pending one is made with the ``chance`` (rows,)."""
        ...

    def next_time(self, hazard: Hazard, rows: Tensor, seeds: Tensor, step: int, /) -> Tensor:
        """log of the time of the next edit (rows,); -inf: there is none."""
        ...

    def one(self, evaluation: Evaluation, rows: Tensor, seeds: Tensor, step: int, /) -> Edits:
        """The edit at that time."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Draws them, as generation does."""

    is_poisson: bool
    """Whether a slot may take several tokens in a step."""

    def of_step(
        self, evaluation: Evaluation, rows: Tensor, chance: Tensor, seeds: Tensor, step: int, /
    ) -> Edits:
        """Drawn edits."""
        return draw_step(evaluation, chance, seeds, step, is_poisson=self.is_poisson)

    def next_time(self, hazard: Hazard, rows: Tensor, seeds: Tensor, step: int, /) -> Tensor:
        """A drawn time."""
        return hazard.draw(uniform(seeds, 1, step=step, stream=_STREAM_TIME).squeeze(1))

    def one(self, evaluation: Evaluation, rows: Tensor, seeds: Tensor, step: int, /) -> Edits:
        """A drawn edit."""
        return draw_one(evaluation, seeds, step)


@dataclass
class Recorded:
    """Draws them, and notes their log-probabilities."""

    is_poisson: bool
    place_log_prob: Float64[Tensor, " rows"]
    """Nats of operations and numbers of insertions, and of the density of the times of first hitting."""
    log_probs: list[Tensor] = field(default_factory=list[Tensor])
    """Nats of the tokens that are inserted or written, given where, in the order of the edits."""
    entropies: list[Tensor] = field(default_factory=list[Tensor])
    """Nats of the distributions of these."""

    def of_step(
        self, evaluation: Evaluation, rows: Tensor, chance: Tensor, seeds: Tensor, step: int, /
    ) -> Edits:
        """Drawn edits."""
        edits = draw_step(evaluation, chance, seeds, step, is_poisson=self.is_poisson)
        self.place_log_prob[rows] += _log_edits(evaluation, edits, chance, is_poisson=self.is_poisson)
        self._note_tokens(evaluation, edits)
        return edits

    def next_time(self, hazard: Hazard, rows: Tensor, seeds: Tensor, step: int, /) -> Tensor:
        """A drawn time, with its density in u."""
        log_next = Drawn(self.is_poisson).next_time(hazard, rows, seeds, step)
        integral, rate = hazard.until(log_next.clamp(min=-700.0))
        log_density = torch.where(log_next > -math.inf, rate.log() - log_next, 0.0)
        self.place_log_prob[rows] += log_density - integral
        return log_next

    def one(self, evaluation: Evaluation, rows: Tensor, seeds: Tensor, step: int, /) -> Edits:
        """A drawn edit."""
        edits = draw_one(evaluation, seeds, step)
        self.place_log_prob[rows] += _log_action(evaluation, edits)
        self._note_tokens(evaluation, edits)
        return edits

    def _note_tokens(self, evaluation: Evaluation, edits: Edits) -> None:
        row, column, index = edits.in_order(edits.operation == WRITE)
        log_prob = torch.zeros_like(row, dtype=torch.float64)
        of_entropy = torch.zeros_like(log_prob)
        tokens = torch.cat((edits.written.unsqueeze(2), edits.inserted), 2)[row, column, index]
        logits_of = ((index > 0, evaluation.insertion_logits), (index == 0, evaluation.substitution_logits))
        for mine, logits in logits_of:
            if bool(mine.any()):
                table = evaluation.sampling.log_probs(logits(row[mine], column[mine]))
                log_prob[mine] = table.gather(1, tokens[mine].unsqueeze(1)).squeeze(1)
                of_entropy[mine] = entropy(table)
        self.log_probs.append(log_prob)
        self.entropies.append(of_entropy)


@dataclass
class Forced:
    """Makes the edits between source and target at planned times, and weighs what the sampler would do.

    The times are independent and uniform in (0, 1), as those of the auxiliary process, and edits are made in
    decreasing order. The weight of a row is the probability with which the sampler makes exactly these edits
    in its steps, divided by that of the plan; or, at exact times, a ratio of densities. Two plans never are
    one path of the sampler, so the expected weight is the probability of all paths without detours.
    """

    z0: Int[Tensor, "rows width"]
    """The aligned source."""
    z1: Int[Tensor, "rows width"]
    """The aligned target."""
    times: Float64[Tensor, "rows width"]
    """When each edit is made; 0 where there is none, or it has been made."""
    made: Bool[Tensor, "rows width"]
    """True at edits that have been made."""
    log_weight: Float64[Tensor, " rows"]
    """Nats, so far."""
    num_steps: int | None
    is_poisson: bool
    num_missing: Int[Tensor, " rows"]
    """Tokens of the targets that are not given."""
    log_total: Float64[Tensor, " rows"] = field(init=False)
    """log of the sum of the rates at the time of the present edit."""

    def __post_init__(self) -> None:
        self.log_total = torch.zeros_like(self.log_weight)

    @staticmethod
    def start(
        batch: EditFlowPromptBatch,
        targets: Targets,
        seeds: Int[Tensor, " rows"],
        *,
        num_steps: int | None,
        alignment: Alignment,
        is_poisson: bool,
    ) -> "Forced":
        """Nothing has been edited.

        Where given tokens fit to several places of the target, one fit is drawn, and its weight is their
        number.

        Raises:
            ValueError: If a target does not hold the given tokens of its row.
        """
        places = uniform(seeds, batch["input_ids"].shape[1], step=0, stream=_STREAM_PLACES)
        sources: list[Tensor] = []
        texts: list[Tensor] = []
        sizes: list[int] = []
        fits = torch.ones(len(seeds), dtype=torch.float64)
        for row, first in enumerate(batch["target_start"].tolist()):
            end = int(batch["attention_mask"][row].sum())
            start = batch["input_ids"][row, first:end].cpu()
            text = targets.ids[row, : int(targets.lengths[row])].cpu()
            given = (~batch["editable"][row, first:end]).nonzero().squeeze(1).tolist()
            found: list[int] = []
            if given:
                slots = batch["open_slots"][row, first - 1 : end].tolist()
                found, number = draw_places(
                    given=start[given].tolist(),
                    is_open=[slots[0], *(slots[1 + place] for place in given)],
                    target=text.tolist(),
                    uniforms=places[row].tolist(),
                )
                if number == 0:
                    raise ValueError(
                        f"target {row} does not hold the given tokens of its row, in their order and gaps"
                    )
                fits[row] = number
            sizes.append(len(given))
            # Stretches and given tokens in turns; only stretches are aligned.
            sources += torch.tensor_split(start, _around(given))
            texts += torch.tensor_split(text, _around(found))
        z0, z1 = (table.to(seeds.device) for table in _aligned(alignment, sources, texts, sizes, seeds))
        times = uniform(seeds, z0.shape[1], step=0, stream=_STREAM_TIMES)
        return Forced(
            z0=z0,
            z1=z1,
            times=torch.where(z0 != z1, times, 0.0),
            made=torch.zeros_like(z0, dtype=torch.bool),
            log_weight=fits.log().to(seeds.device),
            num_steps=num_steps,
            is_poisson=is_poisson,
            num_missing=targets.lengths - torch.tensor(sizes, device=seeds.device),
        )

    def finish(self) -> Float64[Tensor, " rows"]:
        """The log-weights; -inf for a text that the row did not end with."""
        return self.log_weight.masked_fill((self.times > 0).any(1), -math.inf)

    def of_step(
        self, evaluation: Evaluation, rows: Tensor, chance: Tensor, seeds: Tensor, step: int, /
    ) -> Edits:
        """All whose times lie in the step, with the probability of these and of no others."""
        assert self.num_steps is not None
        part = ((1 - self.times[rows]) * self.num_steps).long().clamp(max=self.num_steps - 1)
        due = (self.times[rows] > 0) & (part == step - 1)
        edits, log_tokens = self._make(evaluation, rows, due)
        log_plan = -due.sum(1) * math.log(self.num_steps)
        log_edits = _log_edits(evaluation, edits, chance, is_poisson=self.is_poisson)
        self.log_weight[rows] += log_tokens + log_edits - log_plan
        return edits

    def next_time(self, hazard: Hazard, rows: Tensor, seeds: Tensor, step: int, /) -> Tensor:
        """That of the plan; a row whose text has become impossible, or is written, stops."""
        latest = self.times[rows].amax(1)
        log_next = latest.log()
        integral, rate = hazard.until(log_next.clamp(min=-700.0))
        self.log_weight[rows] -= integral
        # The planned times are uniform in u, the rates in log u.
        self.log_total[rows] = rate.log()
        self.log_weight[rows] += torch.where(latest > 0, rate.log() - log_next, 0.0)
        return log_next.masked_fill(self.log_weight[rows] == -math.inf, -math.inf)

    def one(self, evaluation: Evaluation, rows: Tensor, seeds: Tensor, step: int, /) -> Edits:
        """The edit with the largest time."""
        times = self.times[rows]
        due = torch.zeros_like(times, dtype=torch.bool).scatter(1, times.argmax(1, keepdim=True), True)
        edits, log_tokens = self._make(evaluation, rows, due)
        self.log_weight[rows] += log_tokens + _log_action(evaluation, edits)
        return edits

    def _make(self, evaluation: Evaluation, rows: Tensor, due: Tensor) -> tuple[Edits, Tensor]:
        """The edits that are due (rows, width), and nats of their tokens (rows,)."""
        z0, z1, made = self.z0[rows], self.z1[rows], self.made[rows] | (self.z0[rows] == self.z1[rows])
        present = torch.where(made, z1, z0) != BLANK
        # Column of the text at which each aligned column stands; of an insertion, that of its slot.
        column = present.cumsum(1)
        is_insertion = due & (z0 == BLANK)
        shape = evaluation.input_ids.shape
        row, place = is_insertion.nonzero(as_tuple=True)
        at = row, column[row, place]
        number = torch.zeros(shape, dtype=torch.int64, device=rows.device)
        number.index_put_(at, torch.ones_like(row), accumulate=True)
        edits = Edits.none(shape, max(int(number.max()), 1), rows.device)
        edits.number.copy_(number)
        # Which of the tokens of its slot it is: due ones on its left since the last present token.
        order = is_insertion.cumsum(1) - 1
        first = torch.full(shape, shape[1] + order.shape[1], device=rows.device)
        first = (
            first.view(-1).scatter_reduce(0, at[0] * shape[1] + at[1], order[row, place], "amin").view(shape)
        )
        edits.inserted[(*at, order[row, place] - first[at])] = z1[row, place]
        log_tokens = torch.zeros_like(self.log_weight[rows])
        if len(row) > 0:
            scores = evaluation.sampling.score(evaluation.insertion_logits(*at), z1[row, place])
            log_tokens = log_tokens.index_add(0, row, scores)
        row, place = (due & (z0 != BLANK) & (z1 == BLANK)).nonzero(as_tuple=True)
        edits.operation[row, column[row, place]] = DELETE
        row, place = (due & (z0 != BLANK) & (z1 != BLANK)).nonzero(as_tuple=True)
        if len(row) > 0:
            at = row, column[row, place]
            edits.operation[at] = WRITE
            edits.written[at] = z1[row, place]
            scores = evaluation.sampling.score(evaluation.substitution_logits(*at), z1[row, place])
            log_tokens = log_tokens.index_add(0, row, scores)
        self.made[rows] |= due
        self.times[rows] = self.times[rows].masked_fill(due, 0.0)
        return edits, log_tokens


def _around(places: list[int]) -> list[int]:
    """The borders of parts that consist of one of the places each, and of what is between them."""
    return [border for place in places for border in (place, place + 1)]


def _aligned(
    alignment: Alignment, sources: list[Tensor], texts: list[Tensor], sizes: list[int], seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """Aligned rows (rows, width) of their parts: stretches, and between them ``sizes`` given tokens."""
    number = torch.tensor([2 * size + 1 for size in sizes])
    row = torch.repeat_interleave(number)
    place = torch.arange(len(row)) - (number.cumsum(0) - number)[row]
    is_given = place % 2 == 1
    own_seeds = row_seeds(0, 1, seeds.cpu())[row] + place
    stretches = (~is_given).nonzero().squeeze(1).tolist()
    z0, z1 = align(
        alignment, [sources[i] for i in stretches], [texts[i] for i in stretches], own_seeds[stretches]
    )
    exists = (z0 != BLANK) | (z1 != BLANK)
    columns = {i: (z0[k][exists[k]], z1[k][exists[k]]) for k, i in enumerate(stretches)}
    parts = iter([columns.get(i, (token, token)) for i, token in enumerate(sources)])
    rows = [list(islice(parts, size)) for size in number.tolist()]
    left, right = ([torch.cat([part[side] for part in row]) for row in rows] for side in (0, 1))
    return pad_texts(left), pad_texts(right)


def _log_action(evaluation: Evaluation, edits: Edits) -> Tensor:
    """(rows,) nats of the place and operation of the one edit of each row, given that there is one."""
    log_rates = evaluation.log_rates()
    kinds = (edits.number > 0, edits.operation == DELETE, edits.operation == WRITE)
    chosen = torch.stack(kinds, -1)
    total = log_rates.flatten(1).logsumexp(1)
    return log_rates.masked_fill(~chosen, -math.inf).flatten(1).logsumexp(1) - total


def _log_edits(evaluation: Evaluation, edits: Edits, chance: Tensor, *, is_poisson: bool) -> Tensor:
    """(rows,) nats of the operations of a step and its numbers of insertions, not of their tokens."""
    rates, log_chance = evaluation.rates, chance.log().unsqueeze(1)
    log_probs = torch.log1p(-chance.unsqueeze(1) * rates.edited())
    log_probs = torch.where(edits.operation == DELETE, log_chance + rates.log_delete, log_probs)
    log_probs = torch.where(edits.operation == WRITE, log_chance + rates.log_substitute, log_probs)
    log_operations = torch.where(evaluation.cells.editable, log_probs, 0.0).sum(1)
    return log_operations + _log_numbers(evaluation, edits.number, chance, is_poisson=is_poisson)


def _log_numbers(evaluation: Evaluation, number: Tensor, chance: Tensor, *, is_poisson: bool) -> Tensor:
    """(rows,) nats of the numbers of insertions; where the room ends, of this many or more."""
    is_open = evaluation.cells.open_slots
    mean = chance.unsqueeze(1) * torch.where(is_open, evaluation.rates.log_insert.exp(), 0.0)
    until = number.cumsum(1)
    room = evaluation.room.unsqueeze(1)
    exact = _log_number(mean, number, is_poisson=is_poisson)
    at_least = _log_at_least(mean, number, is_poisson=is_poisson)
    log_probs = torch.where(until < room, exact, at_least)
    is_beyond = until - number >= room
    impossible = (until > room) | ((number > 0) & ~is_open)
    log_probs = torch.where(is_beyond, 0.0, log_probs)
    return log_probs.masked_fill(impossible, -math.inf).sum(1)


def _log_number(mean: Tensor, number: Tensor, *, is_poisson: bool) -> Tensor:
    """Nats of a number of insertions into a slot."""
    if is_poisson:
        return torch.xlogy(number, mean) - mean - torch.lgamma(number.double() + 1)
    chance = mean.clamp(max=1.0)
    log_probs = torch.where(number == 0, torch.log1p(-chance), chance.log())
    return log_probs.masked_fill(number > 1, -math.inf)


def _log_at_least(mean: Tensor, number: Tensor, *, is_poisson: bool) -> Tensor:
    """Nats of this number of insertions into a slot or more."""
    if is_poisson:
        # P(N >= n) = P(n, mean), the regularised lower incomplete gamma function; 1 at n = 0.
        return torch.where(number == 0, 0.0, torch.special.gammainc(number.clamp(min=1).double(), mean).log())
    log_probs = torch.where(number == 0, 0.0, mean.clamp(max=1.0).log())
    return log_probs.masked_fill(number > 1, -math.inf)
