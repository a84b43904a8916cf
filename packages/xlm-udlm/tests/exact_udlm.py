"""Uniform-state diffusion over tiny vocabularies by enumeration, in numpy.

Shares no code with the package. Texts and states are tuples of token numbers 0..K-1, one for each cell. A
prediction gives (cells, K) probabilities for a state and alpha.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
State = tuple[int, ...]
Prediction = Callable[[State, float], Array]
Distribution = dict[State, float]


def texts(length: int, k: int) -> list[State]:
    return list(itertools.product(range(k), repeat=length))


def random_data(length: int, k: int, seed: int) -> Distribution:
    """A distribution of the data without any structure."""
    masses = np.random.default_rng(seed).dirichlet(np.ones(k**length))
    return dict(zip(texts(length, k), masses.tolist(), strict=True))


def entropy(data: Mapping[State, float]) -> float:
    return -sum(mass * math.log(mass) for mass in data.values())


def noised(token: int, alpha: float, k: int) -> Array:
    """q(x_t | x) at one cell."""
    q = np.full(k, (1 - alpha) / k)
    q[token] += alpha
    return q


def path_mass(state: State, text: State, alpha: float, k: int) -> float:
    """q(x_t | x) of all cells."""
    return math.prod(noised(x, alpha, k)[z] for z, x in zip(state, text, strict=True))


def posterior(z: int, p: Array, alpha_t: float, alpha_s: float) -> Array:
    """The plug-in posterior of a cell, by the papers' four terms."""
    k, a = len(p), alpha_t / alpha_s
    own = np.eye(k)[z]
    top = k * alpha_t * p * own + (a - alpha_t) * own + (alpha_s - alpha_t) * p + (1 - a) * (1 - alpha_s) / k
    return top / (k * alpha_t * p[z] + 1 - alpha_t)


def leave_one_out(data: Mapping[State, float]) -> Prediction:
    """m: the posterior of each token given the state of the other cells."""
    k = 1 + max(max(text) for text in data)

    def predict(state: State, alpha: float) -> Array:
        found = np.zeros((len(state), k))
        for text, mass in data.items():
            factors = [noised(x, alpha, k)[z] for z, x in zip(state, text, strict=True)]
            for cell, token in enumerate(text):
                found[cell, token] += mass * math.prod(factors[:cell] + factors[cell + 1 :])
        return found / found.sum(1, keepdims=True)

    return predict


def denoiser(data: Mapping[State, float]) -> Prediction:
    """d: the posterior of each token given the state of all cells."""
    k = 1 + max(max(text) for text in data)

    def predict(state: State, alpha: float) -> Array:
        found = np.zeros((len(state), k))
        for text, mass in data.items():
            for cell, token in enumerate(text):
                found[cell, token] += mass * path_mass(state, text, alpha, k)
        return found / found.sum(1, keepdims=True)

    return predict


def random_prediction(length: int, k: int, seed: int, *, scale: float = 1.0) -> Prediction:
    """Any network at all, also by the time."""
    generator = np.random.default_rng(seed)
    table, by_time = scale * generator.normal(size=(2, k**length, length, k))

    def predict(state: State, alpha: float) -> Array:
        code = sum(token * k**place for place, token in enumerate(state))
        weights = np.exp(table[code] + alpha * by_time[code])
        return weights / weights.sum(1, keepdims=True)

    return predict


def integrand(p: Array, z: int, x: int, alpha: float) -> float:
    """F by its definition."""
    k = len(p)

    def ratio(q: Array) -> Array:
        top = k * alpha * q + 1 - alpha
        return top / top[z]

    r, found = ratio(np.eye(k)[x]), ratio(p)
    return sum(found[v] - r[v] + r[v] * math.log(r[v] / found[v]) for v in range(k) if v != z)


def quadrature(nodes: int = 160) -> tuple[Array, Array]:
    """Points and weights of an integral over t in (0, 1), dense near 0, where F grows like log(1 / t)."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    s = (points + 1) / 2
    return s**4, weights / 2 * 4 * s**3


def nelbo(predict: Prediction, text: State, k: int, *, start: float = 0.0, nodes: int = 160) -> float:
    """int F / (K alpha) d(1 - alpha) over 1 - alpha from ``start`` to 1."""
    total = 0.0
    for point, weight in zip(*quadrature(nodes), strict=True):
        alpha = 1 - start - (1 - start) * point
        for state in texts(len(text), k):
            p = predict(state, alpha)
            terms = sum(integrand(p[i], state[i], text[i], alpha) for i in range(len(text)))
            total += (1 - start) * weight * path_mass(state, text, alpha, k) * terms / (k * alpha)
    return total


def discrete_bound(predict: Prediction, text: State, k: int, num_steps: int) -> float:
    """sum over steps of E KL(q(x_s | x_t, x), p(x_s | x_t)), with alpha = 1 - t."""
    total = 0.0
    for number in range(num_steps):
        alpha_t, alpha_s = number / num_steps, (number + 1) / num_steps
        for state in texts(len(text), k):
            p, mass = predict(state, alpha_t), path_mass(state, text, alpha_t, k)
            for cell, (z, x) in enumerate(zip(state, text, strict=True)):
                right = posterior(z, np.eye(k)[x], alpha_t, alpha_s)
                model = posterior(z, p[cell], alpha_t, alpha_s)
                at = right > 0
                total += mass * float((right[at] * np.log(right[at] / model[at])).sum())
    return total


Kernel = Callable[[int, Array, float, float], Array]
"""Distribution of the next token of a cell, from z, p, alpha_t and alpha_s."""


def product(rows: Sequence[Array]) -> Array:
    """Joint distribution (K^cells,) of independent cells, the first cell changing slowest."""
    joint = np.ones(1)
    for row in rows:
        joint = np.multiply.outer(joint, row).ravel()
    return joint


def sampled(
    predict: Prediction,
    length: int,
    k: int,
    alphas: Sequence[float],
    kernel: Kernel = posterior,
    *,
    start: Array | None = None,
) -> Array:
    """Distribution (K^L,) of the states after steps through these alphas, from uniform noise at the first."""
    states = texts(length, k)
    mass = np.full(len(states), 1 / len(states)) if start is None else start
    for alpha_t, alpha_s in itertools.pairwise(alphas):
        after = np.zeros_like(mass)
        for number, state in enumerate(states):
            p = predict(state, alpha_t)
            after += mass[number] * product([kernel(z, p[i], alpha_t, alpha_s) for i, z in enumerate(state)])
        mass = after
    return mass


def grid(num_steps: int) -> list[float]:
    """alpha = 1 - t at the ends of equal steps."""
    return [number / num_steps for number in range(num_steps + 1)]


def as_array(data: Mapping[State, float]) -> Array:
    """The masses in the order of :func:`texts`."""
    return np.array(list(data.values()))


def total_variation(one: Array, other: Array) -> float:
    return float(np.abs(one - other).sum() / 2)


def assert_drawn_from(drawn: Sequence[State], distribution: Mapping[State, float]) -> None:
    """Pearson's chi-square test at the level of 0.1 %, with the quantile of Wilson and Hilferty.

    Texts expected fewer than 10 times count as one.
    """
    found, number = Counter(drawn), len(drawn)
    expected: defaultdict[State | None, float] = defaultdict(float)
    observed: defaultdict[State | None, int] = defaultdict(int)
    for text, mass in distribution.items():
        name = text if number * mass >= 10 else None
        expected[name] += number * mass
        observed[name] += found.pop(text, 0)
    assert not found, f"impossible texts: {found}"
    statistic = sum((observed[name] - mean) ** 2 / mean for name, mean in expected.items() if mean > 0)
    freedom = len(expected) - 1
    assert freedom > 0, "a distribution with a single text, or too few draws"
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} with {freedom} degrees of freedom"
