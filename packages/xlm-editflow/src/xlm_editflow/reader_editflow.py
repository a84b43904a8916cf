"""The network as a sampler reads it: the rows with their prompts, and the times of the next edits."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from xlm.modules import Columns, PromptCache, prompt_sees_target
from xlm_editflow.choice_editflow import Scored
from xlm_editflow.rates_editflow import Rates
from xlm_editflow.replay_editflow import Choices
from xlm_editflow.text_editflow import Window
from xlm_editflow.times_editflow import Hazard
from xlm_editflow.types_editflow import (
    ChooseTime,
    EditFlowNetwork,
    EditFlowPromptBatch,
    OperationsAt,
    call_model,
    prompt_of,
)


@dataclass
class Turn:
    """Chooses the time of the next edit of some rows from the sums of their rates."""

    choices: Choices
    rows: Tensor
    window: Window
    room: Tensor
    """(rows,) tokens that may be inserted."""
    log_time: Tensor
    log_end: float
    num_points: int
    seeds: Tensor
    step: int
    log_next: Tensor = field(init=False)
    """(rows,) log of the time of the next edit; -inf: there is none."""

    def __call__(self, operations_at: OperationsAt) -> Tensor:
        """(rows,) the time, the last one where nothing follows."""
        open_slots = self.window.open_slots & (self.room > 0).unsqueeze(1)
        width = (self.log_time - self.log_end) / (self.num_points - 1)
        rates: list[Tensor] = []
        for point in range(self.num_points):
            log_time = self.log_time - point * width
            found = Rates.of(operations_at(log_time.exp()), log_time)
            rates.append(found.total(open_slots, self.window.editable))
        hazard = Hazard(self.log_time, width, torch.stack(rates, 1))
        self.log_next = self.choices.next_time(hazard, self.rows, self.seeds, self.step)
        return self.log_next.clamp(min=self.log_end).exp()


@dataclass(frozen=True)
class Reader:
    """The network on the prompts, read with each text or once, and on the rows that are edited."""

    model: EditFlowNetwork
    prompts: Columns
    """Those that are read with each text."""
    prompt_ids: Tensor
    """(rows, width)"""
    start: Tensor
    """(rows,) position of BOS."""
    cache: PromptCache | None

    @staticmethod
    def of(model: EditFlowNetwork, batch: EditFlowPromptBatch) -> "Reader":
        """Read the prompts, if they do not depend on the targets."""
        columns = Columns.of(prompt_of(batch))
        ids = columns.take(batch["input_ids"])
        cache = None
        if not prompt_sees_target(model):
            cache = PromptCache()
            nothing = columns.source.new_empty(0)
            model(
                ids,
                None if bool(columns.exists.all()) else columns.exists,
                columns.source,
                time=torch.ones(len(ids), dtype=torch.float64, device=ids.device),
                insert_at=nothing,
                substitute_at=nothing,
                cache=cache,
            )
        return Reader(model, columns, ids, batch["target_start"] - 1, cache)

    @property
    def width(self) -> int:
        """Columns left of BOS."""
        return self.prompt_ids.shape[1] if self.cache is None else 0

    def read(self, rows: Tensor, window: Window, time: ChooseTime) -> tuple[Scored, Tensor]:
        """The cells of some rows, read out, and their operation logits (rows, length, 3)."""
        input_ids, exists = window.input_ids, window.exists
        column = torch.arange(input_ids.shape[1], device=rows.device)
        position_ids = self.start[rows].unsqueeze(1) + column
        if self.cache is None:
            input_ids = torch.cat((self.prompt_ids[rows], input_ids), 1)
            exists = torch.cat((self.prompts.exists[rows], exists), 1)
            position_ids = torch.cat((self.prompts.source[rows], position_ids), 1)
        cells = (F.pad(table, (self.width, 0)) for table in (window.open_slots, window.editable))
        insert_at, substitute_at = (table.flatten().nonzero().squeeze(1) for table in cells)
        scored, operation_logits = call_model(
            self.model,
            Scored,
            input_ids,
            exists,
            position_ids,
            time=time,
            insert_at=insert_at,
            substitute_at=substitute_at,
            **({} if self.cache is None else {"cache": self.cache.of_rows(rows)}),
        )
        return scored, operation_logits[:, self.width :]
