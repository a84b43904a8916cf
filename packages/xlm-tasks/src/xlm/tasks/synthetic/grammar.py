"""Probabilistic context-free grammars in Chomsky normal form."""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xlm.tasks.synthetic.languages import check_mass, check_sizes, require_that, softmax


@dataclass(frozen=True, eq=False)
class GrammarLanguage:
    """Texts of a grammar whose nonterminal 0 is the start: A -> B C, or A -> token.

    Args:
        binary: (nonterminals, nonterminals, nonterminals) probability of A -> B C at [A, B, C].
        lexical: (nonterminals, tokens) probability of A -> token. The rules of each A add up to 1.
        max_length: The most tokens of a text.

    Raises:
        ValueError: If probabilities do not add up to 1, derivations need not end (the expected numbers of
            nonterminals below a nonterminal have a spectral radius of 1 or more), no text is short enough, or
            one of ``max_length`` tokens could have a probability below the smallest number of float64.
    """

    binary: Tensor
    lexical: Tensor
    max_length: int

    def __post_init__(self) -> None:
        total = self.binary.sum((1, 2)) + self.lexical.sum(1)
        if not torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-9):
            raise ValueError(f"the probabilities of the rules do not add up to 1: {total.tolist()}")
        children = self.binary.sum(1) + self.binary.sum(2)
        radius = float(torch.linalg.eigvals(children).abs().max())
        if radius >= 1:
            raise ValueError(
                f"derivations need not end: the expected numbers of children have the spectral radius "
                f"{radius:.3f}, which must be below 1; give the rules of tokens more probability"
            )
        rules = torch.cat([self.binary.flatten(), self.lexical.flatten()])
        smallest = float(rules[rules > 0].min().log()) * (2 * self.max_length - 1)
        if smallest < -700:
            raise ValueError(
                f"a text of max_length={self.max_length} tokens may have the log-probability {smallest:.0f}, "
                "below -700: choose a shorter max_length or less extreme probabilities"
            )
        check_mass(self)

    @property
    def num_tokens(self) -> int:
        """V, the number of different tokens."""
        return self.lexical.shape[1]

    @property
    def entropy(self) -> None:
        """No closed form: a text may have several derivations."""
        return None

    def partition(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Inside algorithm (Baker 1979), a length of spans at a time; see ``Language``."""
        tokens, end, pad = weights[..., : self.num_tokens], weights[..., -2], weights[..., -1]
        may_end: list[bool] = end.detach().any(0).tolist()
        longest = max((cell for cell, may in enumerate(may_end) if may), default=1)
        # inside[n - 1] is (rows, starts, nonterminals): the weight of all trees over the span of n cells.
        inside = [tokens[:, :longest] @ self.lexical.T]
        for length in range(2, longest + 1):
            starts = longest - length + 1
            left = torch.stack([inside[size - 1][:, :starts] for size in range(1, length)])
            right = torch.stack(
                [inside[length - size - 1][:, size : size + starts] for size in range(1, length)]
            )
            pairs = torch.einsum("krsb,krsc->rsbc", left, right)
            inside.append(torch.einsum("rsbc,abc->rsa", pairs, self.binary))
        # The padding behind a text of n tokens: the product of the weights of the cells after n.
        padded = torch.cat([pad[:, 1:], torch.ones_like(pad[:, :1])], dim=1).flip(1).cumprod(1).flip(1)
        z = torch.zeros_like(end[:, 0])
        for length in range(1, longest + 1):
            z = z + inside[length - 1][:, 0, 0] * end[:, length] * padded[:, length]
        return z, torch.zeros_like(z)

    def draw(self, count: int, generator: np.random.Generator) -> list[list[int]]:
        """See ``Language``; a derivation at a time, from left to right."""
        rules: list[list[float]] = torch.cat([self.binary.flatten(1), self.lexical], dim=1).cumsum(1).tolist()
        drawn = [self._derive(rules, generator) for _ in range(count)]
        return [text for text in drawn if text is not None]

    def _derive(self, rules: list[list[float]], generator: np.random.Generator) -> list[int] | None:
        """One text; None as soon as it has too many symbols, each of which becomes at least one token."""
        size = len(rules)
        text: list[int] = []
        pending = [0]
        while pending:
            if len(text) + len(pending) > self.max_length:
                return None
            cumulative = rules[pending.pop()]
            # Scaled by the total, which rounding may have left beside 1.
            rule = bisect_right(cumulative, generator.random() * cumulative[-1])
            if rule >= size * size:
                text.append(rule - size * size)
            else:
                pending += [rule % size, rule // size]
        return text


def pcfg(
    *,
    num_nonterminals: int,
    num_tokens: int,
    num_rules: int,
    mean_length: float,
    max_length: int,
    sharpness: float,
    seed: int,
) -> GrammarLanguage:
    """Make a grammar in which most texts are impossible.

    Each nonterminal has ``num_rules`` pairs B C and, but for the start, as many tokens. They are chosen at
    random, pairs without the start; their probabilities are softmax(sharpness * z), z ~ N(0, 1), times that
    of the kind.

    Args:
        num_nonterminals: Nonterminals, at least 2.
        num_tokens: V, at least 2.
        num_rules: Rules of each kind for each nonterminal, at most the number of tokens.
        mean_length: Mean length of a text before the conditioning, above 2; most texts are much shorter.
        max_length: The most tokens of a text.
        sharpness: 0 for uniform rules; the larger, the lower the entropy.
        seed: Of the rules.

    Raises:
        ValueError: If an argument is outside its range.
    """
    require_that(num_nonterminals >= 2, "num_nonterminals", num_nonterminals, "at least 2")
    most = min(num_tokens, (num_nonterminals - 1) ** 2)
    require_that(1 <= num_rules <= most, "num_rules", num_rules, f"from 1 to {most}")
    check_sizes(num_tokens, mean_length, max_length)
    generator = np.random.default_rng(seed)
    # With the probability t of a token, a nonterminal other than the start has the mean length
    # m = t + (1 - t) 2 m, and the start, which has no token, 2 m.
    lexical_mass = mean_length / 2 / (mean_length - 1)
    binary = np.zeros((num_nonterminals, num_nonterminals, num_nonterminals))
    lexical = np.zeros((num_nonterminals, num_tokens))
    others = num_nonterminals - 1
    for nonterminal in range(num_nonterminals):
        token_mass = lexical_mass if nonterminal > 0 else 0.0
        left, right = np.divmod(generator.choice(others**2, num_rules, replace=False), others)
        rules = softmax(sharpness, (num_rules,), generator)
        binary[nonterminal, 1 + left, 1 + right] = (1 - token_mass) * rules
        tokens = generator.choice(num_tokens, num_rules, replace=False)
        lexical[nonterminal, tokens] = token_mass * softmax(sharpness, (num_rules,), generator)
    return GrammarLanguage(torch.from_numpy(binary), torch.from_numpy(lexical), max_length)
