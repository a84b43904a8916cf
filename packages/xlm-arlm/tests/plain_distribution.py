"""The network's probabilities of a text, token by token and row by row, in plain Python.

Shares no code with the package: no batch, no padding, no mask, no cache, the softmax by numpy in float64.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from xlm_arlm import ARLM, ARLMExample

PAD, EOS, BOS = 0, 3, 4
VOCAB_SIZE = 11
ORDINARY = (7, 8, 9, 10)
SUPPRESSED = (0, 1, 2, 3, 4, 5, 6)
"""With EOS, as a config lists them."""

Text = tuple[int, ...]
LogProbs = npt.NDArray[np.float64]


def make_model(*, seed: int = 0, num_layers: int = 2, vocab_size: int = VOCAB_SIZE) -> ARLM:
    """A network in float64 whose weights are large enough for predictions to differ from place to place."""
    model = ARLM(vocab_size=vocab_size, d_model=16, num_layers=num_layers, num_heads=2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            center = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(center + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model.to(torch.float64).eval()


def example(
    target: Sequence[int] | None = None, *, prompt: Sequence[int] = (), num_fixed: int = 0
) -> ARLMExample:
    """An example of the data; its seed has no meaning for this family."""
    row: ARLMExample = {"seed": 0, "prompt_ids": torch.tensor(prompt, dtype=torch.int64)}
    if target is not None:
        row["target_ids"] = torch.tensor(target, dtype=torch.int64)
    if target is not None and num_fixed > 0:
        row["fixed"] = torch.arange(len(target)) < num_fixed
    return row


def packed(*documents: Sequence[int]) -> ARLMExample:
    """A block of several documents, whose special tokens stand in them."""
    row = example([token for document in documents for token in document])
    lengths = torch.tensor([len(document) for document in documents])
    return {**row, "segment_ids": torch.arange(len(documents)).repeat_interleave(lengths)}


def watch_head(model: ARLM) -> tuple[list[int], RemovableHandle]:
    """A list that gets the number of rows of each call of the network's head, and what ends this."""
    heads: list[int] = []

    def note(_module: nn.Module, _inputs: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        heads.append(len(logits))

    return heads, model.token_head.register_forward_hook(note)


def next_log_probs(model: ARLM, ids: Sequence[int], excluded: Sequence[int] = ()) -> LogProbs:
    """(vocab,) log-probabilities of what follows ``ids``, given that none of ``excluded`` does."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1].numpy().astype(np.float64)
    logits[list(excluded)] = -np.inf
    return log_softmax(logits)


def log_softmax(logits: LogProbs) -> LogProbs:
    shifted = logits - logits.max()
    return cast("LogProbs", shifted - np.log(np.exp(shifted).sum()))


def log_prob(model: ARLM, given: Sequence[int], tokens: Sequence[int], excluded: Sequence[int] = ()) -> float:
    """log p(tokens | given), given that no excluded token comes."""
    ids = [*given, *tokens]
    return float(
        sum(next_log_probs(model, ids[:end], excluded)[ids[end]] for end in range(len(given), len(ids)))
    )


def texts(alphabet: Sequence[int], longest: int) -> Iterator[Text]:
    """All texts of at most ``longest`` tokens."""
    for length in range(longest + 1):
        yield from itertools.product(alphabet, repeat=length)


def write(
    model: ARLM, given: Sequence[int], choose: Callable[[LogProbs, int], int], limit: int
) -> tuple[Text, int]:
    """Write until EOS or the limit, seeing the whole text again at each step; the tokens and the steps taken.

    Args:
        model: The network.
        given: Prompt and BOS.
        choose: The next token, from the log-probabilities and the number of the token, from 1.
        limit: The most tokens.
    """
    excluded = [token for token in SUPPRESSED if token != EOS]
    tokens: Text = ()
    for step in range(1, limit + 1):
        token = choose(next_log_probs(model, [*given, *tokens], excluded), step)
        if token == EOS:
            return tokens, step
        tokens = (*tokens, token)
    return tokens, limit
