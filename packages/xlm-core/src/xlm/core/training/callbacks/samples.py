"""Generated texts during training."""

import lightning
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from xlm.core.config.console import make_console
from xlm.core.evaluation.predictions import NUM_SAMPLES
from xlm.core.training.harness import Harness


class Samples(Callback):
    """Prints the first generations of each validation beside their references.

    Args:
        num_samples: Generations of each loader, at most 8.
    """

    def __init__(self, *, num_samples: int = 2) -> None:
        if not 1 <= num_samples <= NUM_SAMPLES:
            raise ValueError(f"num_samples is {num_samples}; it must be from 1 to {NUM_SAMPLES}")
        self.num_samples = num_samples

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, Harness)
        if not trainer.is_global_zero:
            return
        console = make_console()
        for loader, generations in pl_module.evaluation.texts.samples.items():
            for generation in generations[: self.num_samples]:
                console.print(f"  {loader}  {generation['prompt']}  ->  {generation['text']}")
                if generation["reference"]:
                    console.print(f"  {'expected':>{len(loader)}}  {generation['reference']}")
