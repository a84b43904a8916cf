"""The interpolant over tiny sets of texts, its posterior and the chains of networks, by enumeration.

Shares no code with the package: states are tuples, batches are filled cell by cell, distributions are numpy
arrays. A state is the target as it is, MASK at masked tokens; there is no prompt.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xlm_flexmdm import FlexMDMBatch, FlexMDMOutput

PAD, MASK, BOS, FIRST = 0, 1, 2, 3
Text = tuple[int, ...]
State = tuple[int, ...]
Array = NDArray[np.float64]


def integers(values: Tensor) -> list[int]:
    """A tensor of one axis as a list."""
    return [int(value) for value in values]


def read_texts(ids: Tensor, lengths: Tensor) -> list[Text]:
    """The rows of a prediction, without padding."""
    return [tuple(integers(row[:length])) for row, length in zip(ids, integers(lengths), strict=True)]


def texts(num_tokens: int, longest: int) -> list[Text]:
    ids = range(FIRST, FIRST + num_tokens)
    return [text for length in range(longest + 1) for text in itertools.product(ids, repeat=length)]


def states(num_tokens: int, longest: int) -> list[State]:
    ids = (MASK, *range(FIRST, FIRST + num_tokens))
    return [state for length in range(longest + 1) for state in itertools.product(ids, repeat=length)]


@dataclass(frozen=True)
class Noising:
    """One way to noise a text: which tokens are present, and which of these are masked."""

    text: Text
    fixed: tuple[bool, ...]
    indices: tuple[int, ...]
    masked: tuple[bool, ...]

    @property
    def state(self) -> State:
        return tuple(
            MASK if hidden else self.text[i] for i, hidden in zip(self.indices, self.masked, strict=True)
        )

    @property
    def gaps(self) -> tuple[int, ...]:
        ends = (-1, *self.indices, len(self.text))
        return tuple(after - before - 1 for before, after in itertools.pairwise(ends))

    @property
    def open_slots(self) -> tuple[bool, ...]:
        """For the slot of BOS and that of each present token."""
        missing = [not is_fixed for is_fixed in self.fixed]
        first = not self.fixed or missing[0]
        after = (missing[i] or (i + 1 < len(self.text) and missing[i + 1]) for i in self.indices)
        return (first, *after)

    def probability(self, absent: float, masked: float) -> float:
        """Of this noising, from the probabilities that a token is absent, and that it is masked."""
        free = len(self.text) - sum(self.fixed)
        num_masked, num_present = sum(self.masked), len(self.indices) - sum(self.fixed)
        clean = 1 - absent - masked
        return absent ** (free - num_present) * masked**num_masked * clean ** (num_present - num_masked)


def noisings(text: Text, fixed: Sequence[bool] | None = None) -> list[Noising]:
    flags = (False,) * len(text) if fixed is None else tuple(fixed)
    result: list[Noising] = []
    for number in range(len(text) + 1):
        for indices in itertools.combinations(range(len(text)), number):
            if any(is_fixed and i not in indices for i, is_fixed in enumerate(flags)):
                continue
            choices = [(False,) if flags[i] else (False, True) for i in indices]
            result += [Noising(text, flags, indices, masked) for masked in itertools.product(*choices)]
    return result


def batch_of(rows: Sequence[Noising]) -> FlexMDMBatch:
    """A batch with one row per noising; times and weights are zero, see :func:`at_times`."""
    number = len(rows)
    width = 1 + max(len(row.indices) for row in rows)
    target = max(len(row.text) for row in rows)
    ids, clean, gaps = (torch.zeros(number, width, dtype=torch.int64) for _ in range(3))
    exists, given, masked, is_open = (torch.zeros(number, width, dtype=torch.bool) for _ in range(4))
    target_ids = torch.zeros(number, target, dtype=torch.int64)
    target_fixed = torch.zeros(number, target, dtype=torch.bool)
    for n, row in enumerate(rows):
        size = 1 + len(row.indices)
        ids[n, :size] = torch.tensor((BOS, *row.state))
        clean[n, :size] = torch.tensor((BOS, *(row.text[i] for i in row.indices)))
        gaps[n, :size] = torch.tensor(row.gaps)
        exists[n, :size] = True
        given[n, :size] = torch.tensor((True, *(row.fixed[i] for i in row.indices)))
        masked[n, :size] = torch.tensor((False, *row.masked))
        is_open[n, :size] = torch.tensor(row.open_slots)
        target_ids[n, : len(row.text)] = torch.tensor(row.text, dtype=torch.int64)
        target_fixed[n, : len(row.text)] = torch.tensor(row.fixed, dtype=torch.bool)
    zeros = torch.zeros(number, dtype=torch.float64)
    return {
        "input_ids": ids,
        "attention_mask": exists,
        "given": given,
        "masked": masked,
        "masked_row": masked.nonzero()[:, 0],
        "masked_column": masked.nonzero()[:, 1],
        "clean_ids": clean,
        "open_slots": is_open,
        "slot_row": is_open.nonzero()[:, 0],
        "slot_column": is_open.nonzero()[:, 1],
        "gaps": gaps,
        "target_start": torch.ones(number, dtype=torch.int64),
        "target_ids": target_ids,
        "target_lengths": torch.tensor([len(row.text) for row in rows]),
        "target_fixed": target_fixed,
        "num_missing": torch.tensor([len(row.text) - sum(row.fixed) for row in rows]),
        "time": zeros,
        "missing_chance": zeros,
        "unmasking_weight": zeros,
        "insertion_weight": zeros,
        "num_draws": torch.tensor(1),
        "is_complete": torch.tensor(True),
    }


def at_times(
    batch: FlexMDMBatch, time: Array, missing_chance: Array, unmasking: Array, insertion: Array
) -> FlexMDMBatch:
    """All rows at the first time, with its weights, then all rows at the second, and so on."""
    rows = len(batch["time"])
    tiled = {
        name: value if value.dim() == 0 else value.repeat(len(time), *[1] * (value.dim() - 1))
        for name, value in cast("dict[str, Tensor]", batch).items()
    }
    masked, is_open = tiled["masked"].nonzero(), tiled["open_slots"].nonzero()
    return {
        **cast("FlexMDMBatch", tiled),
        "masked_row": masked[:, 0],
        "masked_column": masked[:, 1],
        "slot_row": is_open[:, 0],
        "slot_column": is_open[:, 1],
        "time": torch.tensor(time).repeat_interleave(rows),
        "missing_chance": torch.tensor(missing_chance).repeat_interleave(rows),
        "unmasking_weight": torch.tensor(unmasking).repeat_interleave(rows),
        "insertion_weight": torch.tensor(insertion).repeat_interleave(rows),
    }


class Index:
    """Numbers the states of a list; all others share one more number, the last."""

    def __init__(self, known: Iterable[State], num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.numbers = {state: n for n, state in enumerate(dict.fromkeys(known))}
        self.size = len(self.numbers) + 1
        self.longest = max(len(state) for state in self.numbers)
        self._codes, self._order = torch.tensor([self._code(state) for state in self.numbers]).sort()

    def _code(self, state: State) -> int:
        digits = (1 if token == MASK else token - FIRST + 2 for token in state)
        return sum(digit * (self.num_tokens + 2) ** place for place, digit in enumerate(digits))

    def of_rows(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(rows,) numbers of rows that begin with BOS."""
        digit = torch.where(input_ids == MASK, 1, input_ids - FIRST + 2)
        digit = torch.where(attention_mask, digit, 0)[:, 1:]
        code = (digit * (self.num_tokens + 2) ** torch.arange(digit.shape[1])).sum(1)
        place = torch.searchsorted(self._codes, code).clamp(max=len(self._codes) - 1)
        return torch.where(self._codes[place] == code, self._order[place], self.size - 1)


@dataclass(frozen=True)
class Tables:
    """g and f of every state."""

    gaps: Array
    """(states, longest + 1) g of the slot of BOS and of each token."""
    distributions: Array
    """(states, longest, num_tokens) f of each cell."""


class TableNetwork(nn.Module):
    """A network that looks up g and f by the state and the time input; ``tables`` makes those of a time."""

    def __init__(self, index: Index, tables: Callable[[float], Tables]) -> None:
        super().__init__()
        self.index, self.tables = index, tables

    def forward(
        self,
        input_ids: Tensor,
        time: Tensor,
        missing_chance: Tensor,
        attention_mask: Tensor,
        *,
        token_positions: Tensor,
        slot_positions: Tensor,
    ) -> FlexMDMOutput:
        values = sorted({float(value) for value in time})
        when = torch.searchsorted(torch.tensor(values, dtype=torch.float64), time.contiguous())
        tables = [self.tables(value) for value in values]
        all_gaps, all_distributions = (
            torch.tensor(np.stack(parts))
            for parts in zip(*((t.gaps, t.distributions) for t in tables), strict=True)
        )
        width = input_ids.shape[1]
        state = self.index.of_rows(input_ids, attention_mask)
        row, cell = token_positions // width, token_positions % width - 1
        distributions = all_distributions[when[row], state[row], cell.clamp(max=self.index.longest - 1)]
        logits = torch.full((len(row), FIRST + self.index.num_tokens), -torch.inf, dtype=torch.float64)
        logits[:, FIRST:] = distributions.log()
        row, slot = slot_positions // width, slot_positions % width
        return FlexMDMOutput(
            logits, all_gaps[when[row], state[row], slot.clamp(max=self.index.longest)], None
        )


class Posterior:
    """The exact posterior of a distribution over texts, the best that a network can do.

    Args:
        distribution: Probability of each text.
        num_tokens: Size of the vocabulary.
        fixed: Its fixed tokens; none by default.
    """

    def __init__(
        self,
        distribution: dict[Text, float],
        num_tokens: int,
        fixed: dict[Text, Sequence[bool]] | None = None,
    ) -> None:
        self.distribution = distribution
        self.rows = [
            row for text in distribution for row in noisings(text, None if fixed is None else fixed[text])
        ]
        self.batch = batch_of(self.rows)
        self.index = Index((row.state for row in self.rows), num_tokens)
        self._state = np.array([self.index.numbers[row.state] for row in self.rows])
        self._gaps = np.zeros((len(self.rows), self.index.longest + 1))
        self._clean = np.zeros((len(self.rows), self.index.longest, num_tokens))
        for n, row in enumerate(self.rows):
            self._gaps[n, : len(row.gaps)] = row.gaps
            for cell, index in enumerate(row.indices):
                self._clean[n, cell, row.text[index] - FIRST] = 1
        free = np.array([len(row.text) - sum(row.fixed) for row in self.rows])
        num_masked = np.array([sum(row.masked) for row in self.rows])
        present = np.array([len(row.indices) - sum(row.fixed) for row in self.rows])
        self._exponents = free - present, num_masked, present - num_masked
        self._prior = np.array([distribution[row.text] for row in self.rows])

    def probabilities(self, absent: float, masked: float) -> Array:
        """(rows,) probability of each noising given its text."""
        num_absent, num_masked, num_clean = self._exponents
        return absent**num_absent * masked**num_masked * (1 - absent - masked) ** num_clean

    def tables(self, absent: float) -> Tables:
        """E[gap | x_t] and P(token | x_t); 0 and uniform at states that the interpolant does not reach.

        The texts that x_t can come from have the same number of masked and of clean tokens in it, so only the
        probability of being absent enters.
        """
        weight = self._prior * absent ** self._exponents[0]
        total = np.zeros(self.index.size)
        np.add.at(total, self._state, weight)
        gaps = np.zeros((self.index.size, *self._gaps.shape[1:]))
        np.add.at(gaps, self._state, weight[:, None] * self._gaps)
        distributions = np.zeros((self.index.size, *self._clean.shape[1:]))
        np.add.at(distributions, self._state, weight[:, None, None] * self._clean)
        reached = total > 0
        gaps[reached] /= total[reached, None]
        distributions[reached] /= total[reached, None, None]
        distributions[distributions.sum(-1) == 0] = 1 / self.index.num_tokens
        return Tables(gaps, distributions)


def random_distribution(texts: Sequence[Text], seed: int) -> dict[Text, float]:
    weights = np.random.default_rng(seed).exponential(size=len(texts))
    return dict(zip(texts, (weights / weights.sum()).tolist(), strict=True))


def entropy(distribution: dict[Text, float]) -> float:
    return -sum(mass * float(np.log(mass)) for mass in distribution.values())


def late_time_nodes(num_nodes: int = 10) -> tuple[Array, Array]:
    """Nodes and weights of a Gauss rule for integrals over s = -log(1 - t) that fall off like exp(-s)."""
    ends = np.array([0.0, 1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 40.0])
    x, w = np.polynomial.legendre.leggauss(num_nodes)
    half, middle = np.diff(ends) / 2, (ends[1:] + ends[:-1]) / 2
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()
