"""Speculation: several turns of a plan in one call of the network, with the same texts.

    states = [x]                          # the text so far, evaluated in the call before
    for _ in range(K):
        states.append(states[-1] with the tokens of its next turn)     # drafts; the first one is right
    logits = network(states[1:])          # one call
    x = the last of these states that the sampler comes to by its own draws

The noise of a row is fixed and a plan fixes its cells, so the tokens of a turn are a function of the text
before it. A draft draws them from the logits of a shorter text, with the uniform numbers of their own turn;
where the logits of the call give other tokens, the states behind are dropped. (The idea is that of Stern et
al. 2018, arXiv:1811.03115, for greedy autoregressive decoding.) The texts are those without speculation if
the logits of a row do not depend on the rows beside it; in float32 rounding can flip a draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.modules.random import uniform
from xlm.modules.records import WRITE, edits_of_step
from xlm.modules.samplers.canvas import Canvas
from xlm.modules.samplers.plans import Plan
from xlm.modules.samplers.ranks import STREAM_TOKENS


@dataclass
class Speculation:
    """The writing of a canvas by a plan, up to K turns of each row at a time."""

    canvas: Canvas
    plan: Plan
    running: Callable[[Canvas], Bool[Tensor, " rows"]]
    """True at rows that are not stopped."""
    most: int
    """K, at least 1."""

    def __post_init__(self) -> None:
        canvas, plan = self.canvas, self.plan
        self._row, self._column = plan.writes.row, plan.writes.column
        self._turn, self._remask_turn = torch.zeros_like(self._row), torch.zeros(0, dtype=torch.int64)
        self._uniforms = torch.zeros_like(plan.alpha)
        alphas: list[Tensor] = []
        for number, write in enumerate(plan.turns, start=1):
            self._turn[write] = number
            drawn = uniform(canvas.seeds, canvas.masked.shape[1], step=number, stream=STREAM_TOKENS)
            self._uniforms[write] = drawn[self._row[write], self._column[write]]
            alphas.append(plan.alpha_of_rows(number))
        self._alpha = torch.stack(alphas)
        """(turns, rows) time input of each turn."""
        if plan.remasks is not None:
            self._remask_turn = torch.zeros_like(plan.remasks.row)
            for number, again in enumerate(plan.remask_turns, start=1):
                self._remask_turn[again] = number
        self._num_turns = torch.zeros_like(canvas.seeds).scatter_reduce(0, self._row, self._turn, "amax")

    def fill(self) -> int:
        """Write the masked cells, and return the number of the last turn."""
        canvas = self.canvas
        every = torch.arange(len(canvas.seeds), device=canvas.seeds.device)
        done = torch.zeros_like(canvas.seeds)
        runs = ~self._is_final(canvas, done)
        tokens = self._look([canvas], done.unsqueeze(0), runs.unsqueeze(0))[0]
        while bool(runs.any()):
            states, turns, looks = [canvas], [done], [runs]
            for _ in range(self.most):
                turns.append(turns[-1] + 1)
                states.append(self._after(states[-1], turns[-1], tokens))
                looks.append(looks[-1] & ~self._is_final(states[-1], turns[-1]))
            found = self._look(states[1:], torch.stack(turns[1:]), torch.stack(looks[1:]))
            accepted, is_right = torch.zeros_like(done), runs
            for drawn, turn, is_looked in zip(found, turns[1:], looks[1:], strict=True):
                accepted = accepted + is_right.long()
                is_right = is_right & is_looked & self._agree(drawn, tokens, turn + 1)
            done = done + accepted
            for name in ("input_ids", "masked"):
                table = torch.stack([getattr(state, name) for state in states])[accepted, every]
                getattr(canvas, name).copy_(table)
            runs = torch.stack(looks)[accepted, every]
            ahead = runs[self._row] & (self._turn > done[self._row])
            event = torch.arange(len(tokens), device=tokens.device)
            tokens = found[accepted[self._row] - 1, event].where(ahead, tokens)
        canvas.nfe.copy_(done)
        last = int(done.max())
        for number in range(1, last + 1):
            self._note(number, done, tokens)
        return last

    def _is_final(self, state: Canvas, turn: Tensor) -> Tensor:
        """(rows,) True at rows that take no turn after this one."""
        return (turn >= self._num_turns) | ~self.running(state)

    def _after(self, state: Canvas, turn: Tensor, tokens: Tensor) -> Canvas:
        """The state after a turn (rows,) of each row, with the ``tokens`` (events,) of the plan's writes."""
        input_ids, masked = state.input_ids.clone(), state.masked.clone()
        now = self._turn == turn[self._row]
        input_ids[self._row[now], self._column[now]] = tokens[now]
        masked[self._row[now], self._column[now]] = False
        if (again := self.plan.remasks) is not None:
            now = self._remask_turn == turn[again.row]
            input_ids[again.row[now], again.column[now]] = self.canvas.denoiser.mask_id
            masked[again.row[now], again.column[now]] = True
        return replace(state, input_ids=input_ids, masked=masked)

    def _look(
        self,
        states: Sequence[Canvas],
        turn: Int[Tensor, "states rows"],
        looks: Bool[Tensor, "states rows"],
    ) -> Int[Tensor, "states events"]:
        """Tokens of the next K turns of some rows of some states, from one call of the network.

        Args:
            states: The texts.
            turn: The last turn of each.
            looks: The texts that are evaluated.

        Returns:
            Tokens of the plan's writes; -1 where none was drawn.
        """
        found = self._row.new_full((len(states), len(self._row)), -1)
        state, row = looks.nonzero(as_tuple=True)
        if len(row) == 0:
            return found
        canvas = self.canvas
        number = torch.zeros_like(turn)
        number[state, row] = torch.arange(len(row), device=row.device)
        ahead = self._turn - turn[:, self._row]
        at, event = (looks[:, self._row] & (ahead >= 1) & (ahead <= self.most)).nonzero(as_tuple=True)
        of_event, column = self._row[event], self._column[event]
        logits = canvas.evaluate_states(
            torch.stack([state.input_ids for state in states])[state, row],
            row,
            number[at, of_event],
            column,
            self._alpha[turn[state, row], row],
        )
        restricted = canvas.denoiser.vocabulary.restrict(logits, canvas.may_end[of_event, column])
        source = canvas.window.source[of_event, column]
        uniforms = self._uniforms[event]
        found[at, event] = canvas.writer.write(canvas.window.rows[of_event], source, restricted, uniforms)
        return found

    def _agree(self, drawn: Tensor, tokens: Tensor, turn: Tensor) -> Tensor:
        """(rows,) True where all tokens of a turn (rows,) are equal."""
        differs = (self._turn == turn[self._row]) & (drawn != tokens)
        return torch.bincount(self._row[differs], minlength=len(turn)) == 0

    def _note(self, number: int, done: Tensor, tokens: Tensor) -> None:
        """Record the edits of a turn, of the rows that took it."""
        canvas, write = self.canvas, self.plan.turns[number - 1]
        write = write[number <= done[self._row[write]]]
        row, column = self._row[write], self._column[write]
        places = canvas.window.rows[row], canvas.window.source[row, column]
        canvas.edits.append(edits_of_step(number, WRITE, *places, tokens[write]))
        if (again := self.plan.remasks) is not None:
            row, column = (table[self.plan.remask_turns[number - 1]] for table in (again.row, again.column))
            places = canvas.window.rows[row], canvas.window.source[row, column]
            masks = torch.full_like(row, canvas.denoiser.mask_id)
            canvas.edits.append(edits_of_step(number, WRITE, *places, masks))
