"""Writers: what they write, which log-probabilities they note, and what they call latent."""

import math

import pytest
import torch

from xlm.modules import Draw, Force, Recorded, TokenSampling, Writer, row_seeds, uniform

SAMPLINGS = [TokenSampling(), TokenSampling(0.7, 3, 0.8), TokenSampling(0.0)]
ROW = torch.tensor([2, 0, 2, 1])
COLUMN = torch.tensor([1, 3, 0, 2])
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
UNIFORMS = uniform(row_seeds(0, 0, torch.arange(4)), 1, step=1, stream=0)[:, 0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_recording_changes_no_token_and_forcing_them_gives_the_recorded_log_probabilities(
    sampling: TokenSampling,
):
    recorded = Recorded(sampling)
    writers: list[Writer] = [Draw(sampling), recorded]
    drawn, tokens = (writer.write(ROW, COLUMN, LOGITS, UNIFORMS) for writer in writers)
    assert torch.equal(drawn, tokens)
    assert torch.equal(recorded.notes.log_prob[0], sampling.log_probs(LOGITS)[torch.arange(4), tokens])

    ids = torch.zeros(3, 4, dtype=torch.int64)
    ids[ROW, COLUMN] = tokens
    force = Force(sampling, ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.equal(force.write(ROW, COLUMN, LOGITS, UNIFORMS), tokens)
    expected = torch.zeros(3, dtype=torch.float64).index_add(
        0, recorded.notes.row[0], recorded.notes.log_prob[0]
    )
    assert torch.equal(force.log_probs, expected)
    assert not force.is_latent.any()


def test_latent_cells_are_drawn_with_their_own_numbers_and_are_no_factor():
    sampling = TokenSampling()
    ids, known = torch.full((3, 4), 4), torch.zeros(3, 4, dtype=torch.bool)
    known[2, 1] = known[1, 2] = True
    force = Force(sampling, ids, known)
    tokens = force.write(ROW, COLUMN, LOGITS, UNIFORMS)
    drawn = sampling.draw(LOGITS, UNIFORMS)
    assert tokens.tolist() == [4, int(drawn[1]), int(drawn[2]), 4]
    log_probs = sampling.log_probs(LOGITS)[:, 4]
    assert force.log_probs.tolist() == [0.0, float(log_probs[3]), float(log_probs[0])]
    assert force.is_latent.tolist() == [True, False, True]


def test_an_impossible_token_makes_the_text_impossible():
    sampling = TokenSampling(top_k=1)
    worst = LOGITS.argmin(-1)
    ids = torch.zeros(3, 4, dtype=torch.int64)
    ids[ROW, COLUMN] = worst
    force = Force(sampling, ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.equal(force.write(ROW, COLUMN, LOGITS, UNIFORMS), worst)
    assert force.log_probs.tolist() == [-math.inf] * 3


def test_the_least_gap_of_each_row_is_kept():
    force = Force(TokenSampling(), torch.zeros(3, 1).long(), torch.zeros(3, 1).bool())
    force.note_gap(torch.tensor([0, 2]), lambda: torch.tensor([0.5, 0.25]))
    force.note_gap(torch.tensor([2, 0]), lambda: torch.tensor([0.125, 0.75]))
    assert force.smallest_gap.tolist() == [0.5, math.inf, 0.125]
