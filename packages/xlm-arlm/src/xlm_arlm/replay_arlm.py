"""Replay: the log-probabilities of given tokens under the sampler, from one causal evaluation of the network.

What the sampler does at a token depends on the tokens on its left only, so all tokens of a text are forced at
once, through the writer that generation calls token by token.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from xlm.modules import Force, Notes, call_with_readout, logits_in_pieces, suppress_tokens
from xlm.modules.records import Targets, Trace, TrajectoryLogProbs
from xlm_arlm.types_arlm import ARLMNetwork, ARLMPromptBatch


def new_tokens(
    batch: ARLMPromptBatch, targets: Targets
) -> tuple[Int[Tensor, "rows width"], Int[Tensor, " rows"]]:
    """The tokens of each target behind its fixed ones, padded on the right, and their number.

    Raises:
        ValueError: If a target does not begin with the fixed tokens of its row.
    """
    num_fixed, given = batch["num_fixed"].unsqueeze(1), batch["input_ids"]
    # With a column that a row without tokens can point to.
    ids = nn.functional.pad(targets.ids, (0, max(given.shape[1] - targets.ids.shape[1], 0) + 1))
    column = torch.arange(ids.shape[1], device=given.device).expand_as(ids)
    fixed = given.gather(1, (column - num_fixed + given.shape[1]).clamp(max=given.shape[1] - 1))
    differs = (column < num_fixed) & ((ids != fixed) | (column >= targets.lengths.unsqueeze(1)))
    if bool(differs.any()):
        row = int(differs.any(1).nonzero()[0])
        raise ValueError(
            f"target {row} does not begin with the {int(num_fixed[row])} fixed tokens of its row"
        )
    return ids.gather(1, (column + num_fixed).clamp(max=ids.shape[1] - 1)), targets.lengths - batch[
        "num_fixed"
    ]


def ends_early(
    new_ids: Int[Tensor, "rows width"], num_new: Int[Tensor, " rows"], eos_id: int | None
) -> Bool[Tensor, " rows"]:
    """True at rows with EOS among their tokens, with which the sampler ends a text."""
    if eos_id is None:
        return torch.zeros_like(num_new, dtype=torch.bool)
    column = torch.arange(new_ids.shape[1], device=new_ids.device)
    return ((new_ids == eos_id) & (column < num_new.unsqueeze(1))).any(1)


def with_token(
    new_ids: Int[Tensor, "rows width"], num_new: Int[Tensor, " rows"], token: int
) -> Int[Tensor, "rows width_and_one"]:
    """The tokens with another one behind the last of each row."""
    wide = nn.functional.pad(new_ids, (0, 1))
    return wide.scatter(1, num_new.unsqueeze(1), token)


def write_at_once(
    model: ARLMNetwork, batch: ARLMPromptBatch, force: Force, suppressed_ids: Sequence[int]
) -> None:
    """Force all known tokens, row by row from left to right.

    Args:
        model: The network; evaluated once, and not at all if nothing is known.
        batch: The given parts.
        force: The writer, whose column 0 is the first new token of each row.
        suppressed_ids: Ids to exclude.
    """
    row, column = force.known.nonzero(as_tuple=True)
    if len(row) == 0:
        return
    given, num_seen = batch["input_ids"], int(column.max())
    input_ids = torch.cat((given, force.ids[:, :num_seen]), dim=1)
    attention_mask = torch.cat((batch["attention_mask"], force.known[:, :num_seen]), dim=1)

    def write(hidden: Tensor, head: nn.Module) -> None:
        with_gradient = torch.is_grad_enabled()
        pieces = (
            [suppress_tokens(head(hidden), suppressed_ids)]
            if with_gradient
            else logits_in_pieces(hidden, head, suppressed_ids)
        )
        first = 0
        for logits in pieces:
            cells = slice(first, first + len(logits))
            force.write(row[cells], column[cells], logits, _not_used(logits))
            first += len(logits)

    positions = row * input_ids.shape[1] + given.shape[1] - 1 + column
    call_with_readout(model, write, input_ids, attention_mask, positions=positions)


def by_edit(notes: Notes, trace: Trace, num_new: Int[Tensor, " rows"]) -> TrajectoryLogProbs:
    """Log-probabilities at the edits of a trace.

    Args:
        notes: Of all draws, in any order; column 0 is the first new token.
        trace: The insertions.
        num_new: Tokens that each row got; EOS is drawn behind them, and makes no edit.
    """
    place = torch.zeros(len(num_new), dtype=torch.float64, device=num_new.device)
    log_prob = torch.zeros(len(trace.row), dtype=torch.float64, device=num_new.device)
    if not notes.row:
        return TrajectoryLogProbs(log_prob=log_prob, place_log_prob=place)
    row, column, found = torch.cat(notes.row), torch.cat(notes.column), torch.cat(notes.log_prob)
    table = found.new_zeros(len(num_new), int(column.max()) + 1).index_put((row, column), found)
    drawn = trace.step > 0
    log_prob = log_prob.masked_scatter(drawn, table[trace.row[drawn], trace.step[drawn] - 1])
    is_eos = column == num_new[row]
    return TrajectoryLogProbs(
        log_prob=log_prob, place_log_prob=place.index_add(0, row[is_eos], found[is_eos])
    )


def _not_used(logits: Tensor) -> Tensor:
    """Numbers for a write that draws nothing."""
    return logits.new_zeros(len(logits), dtype=torch.float64)
