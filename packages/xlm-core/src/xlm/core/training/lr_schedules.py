"""Learning-rate schedules by name, with the warm-up given in steps or as a fraction of the run."""

import math

import torch
from transformers.optimization import get_scheduler


class WarmupSchedule:
    """A schedule of ``transformers.get_scheduler``.

    Args:
        name: ``constant_with_warmup``, ``linear``, ``cosine``, ``cosine_with_min_lr``,
            ``inverse_sqrt``, ``polynomial`` or ``warmup_stable_decay``.
        warmup: Optimizer steps of linear warm-up; below 1 a fraction of all steps.
        options: Further arguments of that schedule, for example ``{"min_lr_rate": 0.1}``.
    """

    def __init__(self, *, name: str, warmup: float = 0, options: dict[str, float] | None = None) -> None:
        if not (0 <= warmup < math.inf):
            raise ValueError(f"warmup is {warmup}; it must be finite and not negative")
        self.name = name
        self.warmup = warmup
        self.options = options

    def __call__(
        self, optimizer: torch.optim.Optimizer, /, *, num_steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Schedule of ``num_steps`` optimizer steps."""
        return get_scheduler(
            self.name,
            optimizer,
            self.warmup_steps(num_steps),
            num_steps,
            scheduler_specific_kwargs=self.options,
        )

    def warmup_steps(self, num_steps: int) -> int:
        """Steps of the warm-up in a training of ``num_steps``."""
        return round(self.warmup * num_steps) if self.warmup < 1 else int(self.warmup)
