"""Hidden Markov models with a stop, of which n-grams are the special case of a known path."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm.tasks.synthetic.languages import check_mass, check_sizes, require_that, softmax


@dataclass(frozen=True, eq=False)
class MarkovLanguage:
    """Hidden Markov model with a stop: p(x) = sum over paths of pi B ... A B ... stop.

    An n-gram is the special case whose states are contexts, of which the text gives away the path.

    Args:
        initial: (states,) pi, adds up to 1.
        transition: (states, states) A; with ``stop``, each row adds up to 1.
        stop: (states,) probability that the text ends behind a token of this state.
        emission: (states, tokens) B, each row adds up to 1.
        max_length: The most tokens of a text.

    Raises:
        ValueError: If probabilities do not add up to 1, or no text is short enough.
    """

    initial: Tensor
    transition: Tensor
    stop: Tensor
    emission: Tensor
    max_length: int

    def __post_init__(self) -> None:
        totals = {
            "initial": self.initial.sum(),
            "transition and stop": self.transition.sum(1) + self.stop,
            "emission": self.emission.sum(1),
        }
        for name, total in totals.items():
            if not torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-9):
                raise ValueError(f"the probabilities of {name} do not add up to 1: {total.tolist()}")
        check_mass(self)

    @property
    def num_tokens(self) -> int:
        """V, the number of different tokens."""
        return self.emission.shape[1]

    @property
    def entropy(self) -> float | None:
        """Exact if a text determines its path, in O(max_length * states^2); otherwise None."""
        if not self._path_is_known():
            return None
        mass, mass_log = self.initial, -torch.special.entr(self.initial)  # sums of p and of p log p
        total = total_log = torch.zeros((), dtype=torch.float64)
        for _ in range(self.max_length):
            total = total + mass @ self.stop
            total_log = total_log + mass_log @ self.stop - mass @ torch.special.entr(self.stop)
            mass_log = mass_log @ self.transition - mass @ torch.special.entr(self.transition)
            mass = mass @ self.transition
        return float(total.log() - total_log / total)

    def partition(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Forward algorithm, rescaled in each cell (Rabiner 1989, section V.A); see ``Language``."""
        tokens, end, pad = weights[..., : self.num_tokens], weights[..., -2], weights[..., -1]
        emitted = tokens @ self.emission.T  # (rows, cells, states)
        alive = self.initial * emitted[:, 0]
        ended = torch.zeros_like(end[:, 0])
        log_scale = torch.zeros_like(ended)
        for cell in range(1, self.max_length + 1):
            ended = ended * pad[:, cell] + (alive @ self.stop) * end[:, cell]
            alive = (alive @ self.transition) * emitted[:, cell]
            scale = (ended + alive.sum(1)).detach()
            scale = torch.where(scale > 0, scale, 1.0)
            ended, alive = ended / scale, alive / scale.unsqueeze(1)
            log_scale = log_scale + scale.log()
        return ended, log_scale

    def draw(self, count: int, generator: np.random.Generator) -> list[list[int]]:
        """See ``Language``; all texts at once, a token at a time."""
        moves = torch.cat([self.transition, self.stop.unsqueeze(1)], dim=1).numpy().cumsum(1)
        emission = self.emission.numpy().cumsum(1)
        state = _invert(np.tile(self.initial.numpy().cumsum(), (count, 1)), generator)
        tokens = np.zeros((count, self.max_length), dtype=np.int64)
        lengths = np.full(count, self.max_length + 1)
        alive = np.arange(count)
        for position in range(self.max_length):
            tokens[alive, position] = _invert(emission[state], generator)
            state = _invert(moves[state], generator)
            ends = state == len(self.stop)
            lengths[alive[ends]] = position + 1
            alive, state = alive[~ends], state[~ends]
        return [
            row[:length]
            for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)
            if length <= self.max_length
        ]

    def _path_is_known(self) -> bool:
        """Whether no two paths give the same text: a state has one token, and no two successors share one."""
        can_emit = (self.emission > 0).double()
        successors = torch.cat([self.initial.unsqueeze(0), self.transition]) > 0
        return bool((can_emit.sum(1) == 1).all() and (successors.double() @ can_emit <= 1).all())


def ngram(
    *, order: int, num_tokens: int, mean_length: float, max_length: int, sharpness: float, seed: int
) -> MarkovLanguage:
    """Make an n-gram language: each token is drawn given the ``order - 1`` tokens before it.

    Tokens have the probabilities softmax(sharpness * z), z ~ N(0, 1), in each context; the text ends with a
    probability that is uniform in (0, 2 / mean_length) over the contexts. All texts are possible.

    Args:
        order: n, at least 2; texts begin with the shorter contexts.
        num_tokens: V, at least 2.
        mean_length: About the mean length of a text before the conditioning, above 2.
        max_length: The most tokens of a text.
        sharpness: 0 for uniform tokens; the larger, the lower the entropy.
        seed: Of the probabilities.

    Raises:
        ValueError: If an argument is outside its range.
    """
    require_that(order >= 2, "order", order, "at least 2")
    check_sizes(num_tokens, mean_length, max_length)
    generator = np.random.default_rng(seed)
    contexts = [
        context for length in range(1, order) for context in product(range(num_tokens), repeat=length)
    ]
    index = {context: number for number, context in enumerate(contexts)}
    first = softmax(sharpness, (num_tokens,), generator)
    following = softmax(sharpness, (len(contexts), num_tokens), generator)
    stop = generator.uniform(0, 2 / mean_length, len(contexts))
    initial = np.zeros(len(contexts))
    transition = np.zeros((len(contexts), len(contexts)))
    emission = np.zeros((len(contexts), num_tokens))
    for context, state in index.items():
        emission[state, context[-1]] = 1
        for token in range(num_tokens):
            after = index[(*context, token)[-(order - 1) :]]
            transition[state, after] = following[state, token] * (1 - stop[state])
    initial[[index[(token,)] for token in range(num_tokens)]] = first
    return MarkovLanguage(
        initial=torch.from_numpy(initial),
        transition=torch.from_numpy(transition),
        stop=torch.from_numpy(stop),
        emission=torch.from_numpy(emission),
        max_length=max_length,
    )


def hmm(
    *,
    num_states: int,
    num_tokens: int,
    mean_length: float,
    max_length: int,
    sharpness: float,
    seed: int,
) -> MarkovLanguage:
    """Make a hidden Markov model, with probabilities like those of :func:`ngram`.

    Args:
        num_states: K, at least 1.
        num_tokens: V, at least 2.
        mean_length: About the mean length of a text before the conditioning, above 2.
        max_length: The most tokens of a text.
        sharpness: 0 for uniform states and tokens; the larger, the lower the entropy.
        seed: Of the probabilities.

    Raises:
        ValueError: If an argument is outside its range.
    """
    require_that(num_states >= 1, "num_states", num_states, "at least 1")
    check_sizes(num_tokens, mean_length, max_length)
    generator = np.random.default_rng(seed)
    initial = softmax(sharpness, (num_states,), generator)
    moves = softmax(sharpness, (num_states, num_states), generator)
    emission = softmax(sharpness, (num_states, num_tokens), generator)
    stop = generator.uniform(0, 2 / mean_length, num_states)
    transition = moves * (1 - stop[:, None])
    return MarkovLanguage(
        initial=torch.from_numpy(initial),
        transition=torch.from_numpy(transition),
        stop=torch.from_numpy(stop),
        emission=torch.from_numpy(emission),
        max_length=max_length,
    )


def _invert(cumulative: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """(rows,) index drawn from the cumulative probabilities (rows, choices) of each row."""
    # Scaled by the total, which rounding may have left beside 1.
    drawn = generator.random(len(cumulative)) * cumulative[:, -1]
    return (cumulative <= drawn[:, None]).sum(1)
