"""Networks that are right: the exact conditional probabilities of a language, in place of a trained model.

With them a sampler runs without training error, and what is left between its texts and the language is the
sampler's own: tokens that are written together are drawn independently of each other.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from xlm.tasks.synthetic.languages import SLICE, Language, log_mass, one_hot
from xlm.tasks.tokenizers import NumberTokenizer


def marginals(language: Language, weights: Tensor) -> Tensor:
    """Probability of each symbol in each cell under p(x) times the weights, normalised.

    These are the derivatives of log Z with respect to the logarithms of the weights: backpropagation through
    the forward algorithm is the backward algorithm, through the inside algorithm the outside algorithm
    (Eisner 2016, aclanthology.org/W16-5901).

    Args:
        language: The distribution p.
        weights: (rows, max_length + 1, num_tokens + 2) float64; 1 for all symbols of a cell that is not
            observed, otherwise 1 for its symbol alone.

    Returns:
        The same shape. Where no text has the observed symbols, the symbols of nonzero weight have equal
        probability.
    """
    return torch.cat([_marginals(language, rows) for rows in weights.split(SLICE)])


def _marginals(language: Language, weights: Tensor) -> Tensor:
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = weights.detach().clone().requires_grad_()
        z, _ = language.partition(leaf)
        (gradient,) = torch.autograd.grad(z.sum(), leaf)
    weighted = weights * gradient
    total = weighted.sum(-1, keepdim=True)
    return torch.where(total > 0, weighted / total, weights / weights.sum(-1, keepdim=True))


class MaskedOracle(nn.Module):
    """p(x_i | visible cells) as a network of the masked families, xlm_mlm and xlm_mdlm.

    A row is [BOS] and ``max_length`` cells: a text, EOS and PAD, with MASK where nothing is visible. What
    stands right of the first EOS or PAD is not looked at, since the text has ended there.

    Args:
        language: The distribution.
        tokenizer: Number n is token n.
        has_bos: Whether the first column is BOS.
    """

    def __init__(self, language: Language, tokenizer: NumberTokenizer, *, has_bos: bool = True) -> None:
        super().__init__()
        self.language = language
        self.symbols = Symbols(language, tokenizer)
        self.num_before = int(has_bos)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        noise: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logarithms of the conditional probabilities; mask, noise and position ids do not matter.

        Args:
            input_ids: (rows, num_before + max_length).
            attention_mask: Ignored: all rows have the same width.
            noise: Ignored: the conditional probabilities do not depend on the time.
            position_ids: Ignored.
            positions: Cells to return, as indices into the rows * length cells, (cells,); None for all.

        Returns:
            (cells, vocab), or (rows, length, vocab) without ``positions``; float64.

        Raises:
            ValueError: If the rows have another width.
        """
        width = self.num_before + self.language.max_length
        if input_ids.shape[1] != width:
            raise ValueError(
                f"rows of {input_ids.shape[1]} columns: the oracle needs {width}, one for each of the "
                f"max_length={self.language.max_length} cells and {self.num_before} for BOS"
            )
        weights = self.symbols.weights(input_ids[:, self.num_before :].cpu())
        found = self.symbols.logits(marginals(self.language, weights)[:, :-1])
        before = found.new_zeros(len(found), self.num_before, found.shape[2])
        logits = torch.cat([before, found], dim=1).to(input_ids.device)
        return logits if positions is None else logits.flatten(0, 1)[positions]


class ARLMOracle(nn.Module):
    """p(x_i | x_1, ..., x_{i-1}) as the network of xlm_arlm: rows are BOS, a text and EOS.

    Args:
        language: The distribution.
        tokenizer: Number n is token n.
    """

    def __init__(self, language: Language, tokenizer: NumberTokenizer) -> None:
        super().__init__()
        self.language = language
        self.symbols = Symbols(language, tokenizer)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cache: "Cache | None" = None,
    ) -> Tensor:
        """Logarithms of the probabilities of the next token.

        Args:
            input_ids: (rows, length) BOS and what follows; with a cache, the tokens after those in it.
            attention_mask: (rows, length) True everywhere, or None.
            position_ids: Ignored.
            positions: Columns to return, as indices into the rows * length columns, (cells,); None for all.
            cache: Keeps the tokens so far instead of keys and values.

        Returns:
            (cells, vocab), or (rows, length, vocab) without ``positions``; float64.

        Raises:
            ValueError: If a row is padded on the left, or longer than BOS and ``max_length`` tokens.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("the oracle takes no padding: its rows begin with BOS")
        rows, length = input_ids.shape
        seen = input_ids
        if cache is not None:
            cache.extend(input_ids, None)
            kept, _ = cache.layer(0).append(input_ids[:, None, :, None], input_ids[:, None, :, None])
            seen = kept[:, 0, :, 0]
        if seen.shape[1] > self.language.max_length + 1:
            raise ValueError(
                f"rows of {seen.shape[1]} columns: a text has at most "
                f"max_length={self.language.max_length} tokens behind BOS"
            )
        chosen = torch.arange(rows * length) if positions is None else positions.cpu()
        row, next_cell = chosen // length, chosen % length + seen.shape[1] - length
        weights = self.symbols.weights(seen[:, 1:].cpu())[row]
        weights[torch.arange(weights.shape[1]) >= next_cell.unsqueeze(1)] = 1.0
        found = marginals(self.language, weights)[torch.arange(len(row)), next_cell]
        logits = self.symbols.logits(found).to(input_ids.device)
        return logits if positions is not None else logits.view(rows, length, -1)


class Symbols:
    """The ids of a language's symbols: its tokens, EOS for the end, PAD behind it."""

    def __init__(self, language: Language, tokenizer: NumberTokenizer) -> None:
        numbers = tokenizer.encode(" ".join(map(str, range(language.num_tokens))))
        self._ids = torch.tensor([*numbers, tokenizer.eos_id, tokenizer.pad_id])
        self._vocab_size = tokenizer.vocab_size
        self._width = language.max_length + 1

    def weights(self, ids: Tensor) -> Tensor:
        """Weights of the cells of each row up to its end, of which the last holds no token.

        1 at the symbol of a visible cell, 1 everywhere at any other.

        Args:
            ids: (rows, cells); ids that are no symbol, such as MASK, are not visible.
        """
        is_symbol = ids.unsqueeze(-1) == self._ids
        ended = is_symbol[..., -2:].any(-1).long().cumsum(1) - is_symbol[..., -2:].any(-1).long() > 0
        visible = is_symbol.any(-1) & ~ended
        weights = torch.ones(len(ids), self._width, len(self._ids), dtype=torch.float64)
        weights[:, : ids.shape[1]] = torch.where(visible.unsqueeze(-1), is_symbol, 1.0).double()
        weights[:, -1, :-2] = 0.0
        return weights

    def logits(self, probabilities: Tensor) -> Tensor:
        """(..., vocab) logarithms of the probabilities (..., symbols), -inf at all other ids."""
        logits = probabilities.new_full((*probabilities.shape[:-1], self._vocab_size), -torch.inf)
        logits[..., self._ids] = probabilities.log()
        return logits


class LayerCache(Protocol):
    """What a layer stores between calls, as ``xlm.modules.cache.LayerCache`` does."""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new columns (rows, heads, length, width) and return all of them."""
        ...


class Cache(Protocol):
    """What a causal network stores between calls, as ``xlm.modules.KeyValueCache`` does."""

    def extend(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Count the new columns."""
        ...

    def layer(self, index: int) -> LayerCache:
        """The cache of a layer."""
        ...


def factorisation_error(language: Language, cells: Tensor, step: Tensor) -> Tensor:
    """log p(x) - log q(x | plan) of a sampler with the exact conditional probabilities, in nats.

    A plan states in which step each cell is written; the cells of a step are drawn independently given those
    of the steps before. Over texts of the language the mean is KL(p || q given the plan), the sum over steps
    of the expected total correlation of the cells written together. A sampler that draws its plan has at most
    the mean of these KLs.

    Args:
        language: The distribution p.
        cells: (rows, max_length + 1) symbols, see :func:`xlm.tasks.synthetic.layout`.
        step: (rows, max_length) int64 step of each cell, the last one aside, which follows from the others.

    Returns:
        (rows,) float64.
    """
    known = one_hot(language, cells)
    free = torch.ones_like(known)
    free[:, -1, :-2] = 0.0
    z, log_scale = language.partition(known)
    difference = z.log() + log_scale - log_mass(language)
    for number in step.unique().tolist():
        before = torch.nn.functional.pad(step < number, (0, 1)).unsqueeze(-1)
        found = marginals(language, torch.where(before, known, free))
        drawn = found.gather(2, cells.unsqueeze(-1)).squeeze(-1)[:, :-1].log()
        difference = difference - torch.where(step == number, drawn, 0.0).sum(1)
    return difference
