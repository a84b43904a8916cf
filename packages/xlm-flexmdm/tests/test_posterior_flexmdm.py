"""The posterior of embeddings against their enumeration."""

import itertools

import numpy as np
import torch

from xlm_flexmdm import embedding_posterior, expected_gaps


def _embeddings(matches: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> list[tuple[int, ...]]:
    cells, tokens = matches.shape
    return [
        indices
        for indices in itertools.combinations(range(tokens), cells)
        if all(matches[cell, i] for cell, i in enumerate(indices))
    ]


def test_posterior_is_uniform_over_the_embeddings() -> None:
    generator = np.random.default_rng(0)
    rows, cells, tokens = 60, 4, 6
    table = np.zeros((rows, cells, tokens), dtype=bool)
    num_cells, num_tokens = np.zeros((2, rows), dtype=np.int64)
    expected = np.zeros((rows, cells, tokens))
    gaps = np.zeros((rows, cells + 1))
    for row in range(rows):
        num_tokens[row] = generator.integers(0, tokens + 1)
        num_cells[row] = generator.integers(0, min(cells, num_tokens[row]) + 1)
        matches = generator.random((num_cells[row], num_tokens[row])) < 0.6
        # One embedding there is in any case.
        matches[np.arange(num_cells[row]), np.arange(num_cells[row])] = True
        found = _embeddings(matches)
        table[row, : num_cells[row], : num_tokens[row]] = matches
        for indices in found:
            ends = (-1, *indices, int(num_tokens[row]))
            gaps[row, : len(ends) - 1] += (np.diff(ends) - 1) / len(found)
            for cell, i in enumerate(indices):
                expected[row, cell, i] += 1 / len(found)

    sizes = torch.tensor(num_cells), torch.tensor(num_tokens)
    posterior = embedding_posterior(torch.tensor(table), sizes[0])
    np.testing.assert_allclose(posterior.numpy(), expected, atol=1e-13)
    found_gaps = expected_gaps(posterior, *sizes).numpy()
    for row in range(rows):
        slots = num_cells[row] + 1
        np.testing.assert_allclose(found_gaps[row, :slots], gaps[row, :slots], atol=1e-12)


def test_counts_beyond_the_largest_float() -> None:
    """900 masks in 1800 tokens: about 10^540 embeddings; the mean index is that of order statistics."""
    cells, tokens = 900, 1800
    num_cells = torch.tensor([cells])
    posterior = embedding_posterior(torch.ones(1, cells, tokens, dtype=torch.bool), num_cells)
    torch.testing.assert_close(posterior.sum(2), torch.ones(1, cells, dtype=torch.float64))
    gaps = expected_gaps(posterior, num_cells, torch.tensor([tokens]))
    expected = (tokens - cells) / (cells + 1)
    torch.testing.assert_close(
        gaps, torch.full((1, cells + 1), expected, dtype=torch.float64), rtol=1e-8, atol=0
    )


def test_posterior_without_cells_or_tokens() -> None:
    none = torch.tensor([0, 0])
    empty = embedding_posterior(torch.ones(2, 0, 3, dtype=torch.bool), none)
    assert empty.shape == (2, 0, 3)
    assert torch.equal(
        expected_gaps(empty, none, torch.tensor([3, 2])), torch.tensor([[3.0], [2.0]]).double()
    )
    nothing = embedding_posterior(torch.ones(2, 0, 0, dtype=torch.bool), none)
    assert torch.equal(expected_gaps(nothing, none, none), torch.zeros(2, 1, dtype=torch.float64))
