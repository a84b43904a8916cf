"""Texts of an automaton: tokens after which no allowed text remains are forbidden, and rows are weighed.

A token is drawn from the sampler's distribution restricted to the tokens after which the cells that are
still masked can be filled to an allowed text, and the weight of the row is multiplied by the probability of
these tokens. So the expectation of the weight is the probability that the sampler writes an allowed text,
and rows counted by their weights have its distribution given that. Cells of one evaluation are drawn from
left to right, each given those before, from the same logits. Texts that grow from left to right have a
writer of their own, which needs one state for each row.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules.options import require
from xlm.modules.samplers.automata import Automaton
from xlm.modules.samplers.canvas import CellTokens, Text
from xlm.modules.samplers.sampler import Sampler
from xlm.modules.sampling import TokenSampling, categorical


@dataclass(frozen=True)
class _Steps:
    """The automaton with a further state for what follows the end of a text."""

    after: Tensor
    """(2, states, vocab) next state where no text may end, and where it may; the last one, from which nothing
    leads on, where there is none."""
    possible: Tensor
    """(2, vocab) tokens that a cell can hold where no text may end, and where it may."""
    final: Tensor
    """(states,) True at states in which the cells may be used up."""

    @staticmethod
    def of(automaton: Automaton, vocabulary: CellTokens, device: torch.device) -> "_Steps":
        states, vocab = automaton.transitions.shape
        behind, lost = states, states + 1
        table = automaton.transitions.to(device)
        inside = torch.full((states + 2, vocab), lost, dtype=torch.int64, device=device)
        inside[:states] = table.where(table >= 0, lost)
        # What stands behind the end of a text is no part of it.
        inside[behind] = behind
        ending = inside.clone()
        ends = vocabulary.ends(torch.arange(vocab, device=device))
        accepting = automaton.accepting.to(device)
        ending[:states] = ending[:states].where(~ends, torch.where(accepting, behind, lost).unsqueeze(1))
        may_end = torch.tensor([False, True], device=device)
        possible = vocabulary.restrict(torch.zeros(2, vocab, device=device), may_end).isfinite()
        nothing = torch.tensor([True, False], device=device)
        return _Steps(torch.stack([inside, ending]), possible, torch.cat([accepting, nothing]))

    def any_token(self) -> Tensor:
        """(2, states, states) whether a possible token leads from one state to another."""
        links: list[Tensor] = []
        for after, possible in zip(self.after, self.possible, strict=True):
            table = after[:, possible]
            links.append(torch.zeros(len(table), len(table), device=table.device).scatter(1, table, 1.0))
        return torch.stack(links)


def _check_vocabulary(automaton: Automaton, logits: Tensor) -> None:
    sizes = automaton.transitions.shape[1], logits.shape[1]
    require(sizes[0] == sizes[1], "constraint's vocab_size", sizes[0], f"that of the network, {sizes[1]}")


def draw_allowed(
    sampling: TokenSampling,
    logits: Float[Tensor, "cells vocab"],
    allowed: Bool[Tensor, "cells vocab"],
    uniforms: Float64[Tensor, " cells"],
) -> tuple[Int[Tensor, " cells"], Float64[Tensor, " cells"]]:
    """Draw tokens among the allowed ones, with the log-probability of these in nats.

    Where the filters leave none of them, it is -inf, and an allowed token is drawn nevertheless.
    """
    log_probs = sampling.log_probs(logits).masked_fill(~allowed, -torch.inf)
    mass = log_probs.logsumexp(1)
    rest = logits.to(torch.float64).masked_fill(~allowed, -torch.inf)
    chances = torch.where((mass == -torch.inf).unsqueeze(1), rest, log_probs)
    return chances.argmax(1) if sampling.is_greedy else categorical(chances, uniforms), mass


def check_constraint(sampler: Sampler, constraint: Automaton | None) -> None:
    """Refuse a sampler that cannot be constrained.

    Raises:
        ValueError: If it writes cells more than once, draws tokens that it does not write, or speculates.
    """
    if constraint is not None and (sampler.order == "tokens" or sampler.revise is not None):
        raise ValueError(
            "a constraint needs a sampler that writes each cell once, with the only token that is drawn for "
            f"it, not rank={sampler.rank} with revise={sampler.revise}"
        )
    if constraint is not None and sampler.speculate is not None:
        raise ValueError(
            f"speculate={sampler.speculate} drafts tokens without looking at the others of a text, which a "
            "constraint does: set it to null"
        )


def refuse_constrained(constraint: Automaton | None, reason: str) -> None:
    """Refuse what is not defined under a constraint, with the reason.

    Raises:
        ValueError: If there is one.
    """
    if constraint is not None:
        raise ValueError(
            f"{reason} under a constraint, which gives its texts weights instead: set predictor.constraint "
            "to null"
        )


@dataclass
class Constrained:
    """The writer of texts of an automaton; every cell is written once."""

    sampling: TokenSampling
    automaton: Automaton
    text: Text
    """All rows before the first turn."""
    log_weight: Float64[Tensor, " rows"] = field(init=False)
    """Nats: the probability of the allowed tokens in all draws of each row; -inf where there was none."""

    def __post_init__(self) -> None:
        text = self.text
        self._steps = _Steps.of(self.automaton, text.vocabulary, text.input_ids.device)
        self._links = self._steps.any_token()
        self._ids, self._masked = text.input_ids.clone(), text.masked.clone()
        self._may_end = text.may_end.long()
        self.log_weight = torch.zeros(len(self._ids), dtype=torch.float64, device=self._ids.device)
        rows = torch.arange(len(self._ids), device=self._ids.device)
        states = self._forward(self._start(rows), rows, 0, self._ids.shape[1])
        impossible = ~self._is_final(states)
        if bool(impossible.any()):
            row = int(impossible.nonzero()[0])
            cells = int(text.cells[row].sum())
            raise ValueError(
                f"constraint: no text of row {row}, with its {cells} cells and given tokens, is allowed"
            )

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """Drawn tokens, from left to right in each row.

        Raises:
            ValueError: If the automaton has another vocabulary than the network.
        """
        _check_vocabulary(self.automaton, logits)
        tokens = torch.empty_like(row)
        rows, index = torch.unique(row, return_inverse=True)
        possible_later = self._backward(rows)
        states, reached = self._start(rows), 0
        for place in torch.unique(column).tolist():
            states = self._forward(states, rows, reached, place)
            reached = place
            now = (column == place).nonzero().squeeze(1)
            at = index[now]
            allowed = self._allowed(states[at], possible_later[place + 1][at], self._may_end[row[now], place])
            # What a block has behind the limit of the text is cut off.
            allowed = allowed | ~self.text.cells[row[now], place].unsqueeze(1)
            tokens[now], mass = draw_allowed(self.sampling, logits[now], allowed, uniforms[now])
            self.log_weight[row[now]] += mass
            self._ids[row[now], place] = tokens[now]
            self._masked[row[now], place] = False
        return tokens

    def note_gap(self, row: Tensor, gap: object, /) -> None:
        """Nothing is noted."""

    def _start(self, rows: Tensor) -> Tensor:
        """(rows, states) True at state 0."""
        states = torch.zeros(len(rows), len(self._links[0]), dtype=torch.bool, device=rows.device)
        states[:, 0] = True
        return states

    def _is_final(self, states: Bool[Tensor, "rows states"]) -> Bool[Tensor, " rows"]:
        return (states & self._steps.final).any(1)

    def _forward(self, states: Tensor, rows: Tensor, first: int, last: int) -> Tensor:
        """States that the columns from ``first`` on, without ``last``, can lead to."""
        for column in range(first, last):
            links = self._links_at(rows, column)
            moved = (states.unsqueeze(1).float() @ links).squeeze(1) > 0
            states = moved.where(self.text.cells[rows, column].unsqueeze(1), states)
        return states

    def _backward(self, rows: Tensor) -> list[Tensor]:
        """(rows, states) before each column, and behind the last: True at states that can still be final."""
        states = self._steps.final.expand(len(rows), -1)
        tables = [states]
        for column in reversed(range(self._ids.shape[1])):
            links = self._links_at(rows, column)
            moved = (links @ states.unsqueeze(2).float()).squeeze(2) > 0
            states = moved.where(self.text.cells[rows, column].unsqueeze(1), states)
            tables.append(states)
        return tables[::-1]

    def _links_at(self, rows: Tensor, column: int) -> Float[Tensor, "rows states states"]:
        """1 where the token of a column, or where it is masked any, leads from state to state."""
        may_end, ids = self._may_end[rows, column], self._ids[rows, column]
        links = self._links[may_end]
        known = ~self._masked[rows, column]
        after = self._steps.after[may_end, :, ids]
        of_token = torch.zeros_like(links).scatter(2, after.unsqueeze(2), 1.0)
        return of_token.where(known.view(-1, 1, 1), links)

    def _allowed(
        self,
        states: Bool[Tensor, "cells states"],
        later: Bool[Tensor, "cells states"],
        may_end: Int[Tensor, " cells"],
    ) -> Bool[Tensor, "cells vocab"]:
        """True at tokens that lead from a state that is reached to one that can still be final."""
        allowed = torch.zeros_like(self._steps.possible[may_end])
        for state in states.any(0).nonzero().squeeze(1).tolist():
            allowed |= states[:, state : state + 1] & later.gather(1, self._steps.after[may_end, state])
        return allowed & self._steps.possible[may_end]


@dataclass
class ConstrainedFromLeft:
    """The writer of texts of an automaton that get one token after another, up to an end or a limit.

    Column 0 of a write is the first token behind the given ones.
    """

    sampling: TokenSampling
    automaton: Automaton
    vocabulary: CellTokens
    budget: Int[Tensor, " rows"]
    """The most tokens of each row, without the given ones."""
    ends: bool
    """Whether some token ends a text; without, each gets all tokens of its budget."""
    given: Int[Tensor, "rows given"]
    """Tokens that the texts begin with."""
    is_given: Bool[Tensor, "rows given"]
    log_weight: Float64[Tensor, " rows"] = field(init=False)
    """Nats: the probability of the allowed tokens in all draws of each row; -inf where there was none."""

    def __post_init__(self) -> None:
        device, may_end = self.budget.device, int(self.ends)
        steps = _Steps.of(self.automaton, self.vocabulary, device)
        self._after, links = steps.after[may_end], steps.any_token()[may_end]
        finite = [steps.final]
        for _ in range(int(self.budget.max()) if len(self.budget) > 0 else 0):
            finite.append(links @ finite[-1].float() > 0)
        self._can_end = torch.stack(finite)
        """(budget + 1, states) True at states that so many possible tokens can lead to an allowed text."""
        self._states = torch.zeros_like(self.budget)
        for ids, exists in zip(self.given.T, self.is_given.T, strict=True):
            self._states = steps.after[0, self._states, ids].where(exists, self._states)
        self.log_weight = torch.zeros(len(self.budget), dtype=torch.float64, device=device)
        impossible = ~self._can_end[self.budget, self._states]
        if bool(impossible.any()):
            row = int(impossible.nonzero()[0])
            raise ValueError(
                f"constraint: no text of row {row}, with its given tokens and a budget of "
                f"{int(self.budget[row])} further ones, is allowed"
            )

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """Drawn tokens, one in each row.

        Raises:
            ValueError: If the automaton has another vocabulary than the network.
        """
        _check_vocabulary(self.automaton, logits)
        after = self._after[self._states[row]]
        allowed = self._can_end[self.budget[row] - column - 1].gather(1, after)
        tokens, mass = draw_allowed(self.sampling, logits, allowed, uniforms)
        self.log_weight[row] += mass
        self._states[row] = after.gather(1, tokens.unsqueeze(1)).squeeze(1)
        return tokens

    def note_gap(self, row: Tensor, gap: object, /) -> None:
        """Nothing is noted."""
