"""Generation block by block: a sampler writes the cells of each block, given the clean blocks before it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.modules import Writer, row_seeds
from xlm.modules.records import UserEdit
from xlm.modules.samplers import Canvas, Filled, Generation, Text
from xlm_bd3lm.past_bd3lm import Past, PastOfRows


@dataclass(frozen=True, kw_only=True)
class BlockGeneration(Generation):
    """A :class:`xlm.modules.samplers.Generation` whose windows are the blocks of a batch."""

    prompt_ids: Int[Tensor, "rows prompt"]
    prompt_mask: Bool[Tensor, "rows prompt"]
    cells: Bool[Tensor, "rows cells"]
    """True at the cells of all blocks; a text may be cut inside one."""
    block_length: int
    make_past: Callable[[Tensor, Tensor], Past]
    """Clean tokens and their blocks, (rows, past) each, as a past."""
    keeps_states: ClassVar[bool] = True

    def fill(
        self, text: Text, writer: Writer, seeds: Int[Tensor, " rows"], edit: UserEdit | None = None
    ) -> Filled:
        """Write the masks of a text, with an edit of the user in the block of its step.

        A row leaves when its text is complete; the rest of its block is not written, and that block is not
        evaluated as a clean one. Clean tokens are evaluated beside the next block, at no evaluation of their
        own.

        Raises:
            ValueError: If the edit is in another block, or the row has no such step.
        """
        text = replace(text, cells=self.cells)  # the same tables, which are written in place
        nfe, edits, num_turns = torch.zeros_like(seeds), list[Tensor](), 0
        saved_calls, more_states = torch.zeros_like(seeds), torch.zeros_like(seeds)
        is_edited = edit is None
        spans = text.spans(self.block_length, self.block_length)
        rows = (~text.is_complete()).nonzero().squeeze(1)
        past = self._past(text, rows, 0, 0)
        for number, span in enumerate(spans):
            window = text.window(span)
            if len(window.rows) > 0:
                # Columns and turns are the same in every block, so its draws get seeds of their own.
                own_seeds = seeds if number == 0 else row_seeds(number, 0, seeds)
                of_window = torch.searchsorted(rows, window.rows)
                canvas = Canvas(
                    denoiser=replace(self.denoiser, prompts=PastOfRows(past, of_window)),
                    writer=writer,
                    window=window,
                    input_ids=window.show(text.input_ids),
                    masked=window.show(text.masked) & window.exists,
                    may_end=window.show(text.may_end) & window.exists,
                    seeds=own_seeds[window.rows],
                    user_edit=text.place(edit, window, num_turns),
                )
                last = self.sampler.fill(canvas)
                is_edited |= canvas.user_edit is not None and canvas.user_edit.is_done
                text.put(window, canvas.input_ids, canvas.masked)
                nfe[window.rows] += canvas.nfe
                saved_calls[window.rows] += canvas.nfe - canvas.calls
                more_states[window.rows] += canvas.states - canvas.nfe
                edits += [torch.cat([edit[:1] + num_turns, edit[1:]]) for edit in canvas.edits]
                num_turns += last
            is_open = ~text.is_complete()[rows]
            if not bool(is_open.all()):
                rows, past = rows[is_open], past.select(is_open.nonzero().squeeze(1))
            if len(rows) == 0:
                break
            past = self._next(text, rows, past, number)
        if edit is not None and not is_edited:
            raise ValueError(f"the row has no step {edit.step}")
        return Filled(nfe, nfe - saved_calls, nfe + more_states, edits)

    def _next(self, text: Text, rows: Tensor, past: Past, number: int) -> Past:
        """The past of the block behind block ``number``, from 0, which is added to it."""
        start = 0 if self.window_length is None else number + 2 - self.window_length // self.block_length
        if start > 0:  # the earliest block is not seen any more
            return self._past(text, rows, start, number + 1)
        past.append(text.input_ids[rows, number * self.block_length :][:, : self.block_length])
        return past

    def _past(self, text: Text, rows: Tensor, start: int, stop: int) -> Past:
        """The prompts and the blocks from ``start`` to ``stop``, as if there were no others."""
        size = self.block_length
        ids = text.input_ids[rows, start * size : stop * size]
        number = 1 + torch.arange(ids.shape[1], device=ids.device) // size
        of_prompt = torch.where(self.prompt_mask[rows], 0, -1)
        blocks = torch.cat((of_prompt, number.expand_as(ids)), dim=1)
        return self.make_past(torch.cat((self.prompt_ids[rows], ids), dim=1), blocks)
