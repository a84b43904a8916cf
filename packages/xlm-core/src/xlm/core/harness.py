"""The LightningModule that holds the slots and delegates to them.

It knows batches, sums, counts and ids; it knows nothing of any model family.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import override

from xlm.core.data import LoadedBatch
from xlm.core.metrics import GenerationCost, LikelihoodMean, LossMean, SummedMetric
from xlm.core.predictions import PredictionWriter, decode
from xlm.core.protocols import (
    GenerationMetric,
    LikelihoodLoss,
    Loss,
    LossMetric,
    LossOutput,
    LRSchedulerFactory,
    OptimizerFactory,
    Predictor,
    Tokenizer,
)
from xlm.core.schema import LoaderSettings, Stage
from xlm.modules import row_seeds


@dataclass(frozen=True)
class Slots:
    """Everything that a config puts in, as made objects."""

    tokenizer: Tokenizer
    model: nn.Module
    loss: Loss[Any]
    predictor: Predictor[Any]
    optimizer: OptimizerFactory
    lr_scheduler: LRSchedulerFactory
    loss_metrics: Mapping[str, LossMetric[Any]] = field(default_factory=dict[str, LossMetric[Any]])
    generation_metrics: Mapping[str, GenerationMetric] = field(default_factory=dict[str, GenerationMetric])


class _Window:
    """Sums of the micro-batches since the last optimizer step, on the device, never read there."""

    def __init__(self) -> None:
        self.count: Tensor | None = None
        self.terms: dict[str, Tensor] = {}

    def add(self, output: LossOutput) -> None:
        count = output.loss_count.detach()
        self.count = count if self.count is None else self.count + count
        for name, value in {"loss": output.loss_sum, **output.terms}.items():
            total = self.terms.get(name)
            self.terms[name] = value.detach() if total is None else total + value.detach()


class Harness(lightning.LightningModule):
    """Trains and evaluates whatever fits the slots.

    Args:
        slots: The objects.
        loaders: Settings of the evaluation loaders, by stage and name, in the data module's order.
        seed: Seed of the run; dropout of micro-step k on rank r is drawn from (seed, k, r).
        compile_network: Whether to run the network through ``torch.compile``.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        loaders: Mapping[Stage, Mapping[str, LoaderSettings]],
        seed: int,
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        self.slots = slots
        self.model = slots.model
        self.loaders = loaders
        self.seed = seed
        self.writer: PredictionWriter | None = None
        self.results: dict[str, float] = {}
        # In a tuple, hence outside the module tree: the keys of a checkpoint are those of the plain network.
        self._compiled = (torch.compile(self.model),) if compile_network else ()
        self._window = _Window()
        self.metrics: dict[str, dict[str, SummedMetric[Any]]] = {
            f"{stage}/{name}": self._loader_metrics(settings)
            for stage in ("val", "test")
            for name, settings in loaders[stage].items()
        }

    @property
    def network(self) -> nn.Module:
        """The network as it is called: compiled if asked for."""
        return cast("nn.Module", self._compiled[0]) if self._compiled else self.model

    # ---- training -----------------------------------------------------------------------------------

    @override
    def on_train_batch_start(self, batch: LoadedBatch[Any], batch_idx: int) -> None:
        accumulated = self.trainer.accumulate_grad_batches
        micro_batch = self.trainer.global_step * accumulated + batch_idx % accumulated
        place = torch.tensor([micro_batch * self.trainer.world_size + self.global_rank])
        torch.manual_seed(int(row_seeds(self.seed, 0, place)))

    @override
    def training_step(self, batch: LoadedBatch[Any], batch_idx: int) -> Tensor:
        output = self.slots.loss(self.network, batch.batch)
        self._window.add(output)
        # Lightning divides by this number; what is to be accumulated is the plain sum.
        return output.loss_sum * self.trainer.accumulate_grad_batches

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn gradients of the sum into gradients of the mean over all ranks and micro-batches."""
        window, self._window = self._window, _Window()
        assert window.count is not None
        world_size = self.trainer.world_size
        names = list(window.terms)
        sums = torch.stack([window.count.float(), *(window.terms[name].float() for name in names)])
        if world_size > 1:
            sums = cast("Tensor", self.trainer.strategy.reduce(sums, reduce_op="sum"))
        count = sums[0].clamp(min=1)
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        # DDP has averaged the gradients over ranks, hence the number of ranks.
        torch._foreach_mul_(gradients, world_size / count)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]  # torch's own optimizers use it; it has no public name
        means = sums[1:] / count
        self.log("train/loss", means[0], prog_bar=True)
        self.log_dict({f"train/{name}": mean for name, mean in zip(names[1:], means[1:], strict=True)})

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.slots.optimizer(self.model.parameters())
        scheduler = self.slots.lr_scheduler(optimizer, num_steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- evaluation ---------------------------------------------------------------------------------

    @override
    def validation_step(self, batch: LoadedBatch[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("val", batch, dataloader_idx)

    @override
    def test_step(self, batch: LoadedBatch[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("test", batch, dataloader_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        self._report("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _evaluate(self, stage: Stage, batch: LoadedBatch[Any], dataloader_idx: int) -> None:
        name, settings = list(self.loaders[stage].items())[dataloader_idx]
        metrics = self.metrics[f"{stage}/{name}"]
        if "loss" in settings.uses:
            output = self.slots.loss(self.network, batch.batch)
            for metric in ("loss", *self.slots.loss_metrics):
                metrics[metric].update(output)
        if "likelihood" in settings.uses:
            loss = cast("LikelihoodLoss[Any]", self.slots.loss)
            metrics["likelihood"].update(loss.likelihood(self.network, batch.batch))
        if "generation" in settings.uses:
            self._generate(f"{stage}/{name}", batch)

    def _generate(self, loader: str, batch: LoadedBatch[Any]) -> None:
        assert batch.examples is not None
        metrics = self.metrics[loader]
        wants_trace = self.writer is not None and self.writer.wants_trace(loader)
        prediction = self.slots.predictor(self.network, batch.batch, batch.seeds, trace=wants_trace)
        generations = decode(prediction, batch.examples, self.slots.tokenizer)
        metrics["cost"].update(prediction)
        for name in self.slots.generation_metrics:
            metrics[name].update(generations)
        if self.writer is not None:
            self.writer.write(loader, prediction, generations, self.slots.tokenizer)

    def _report(self, stage: Stage) -> None:
        for name in self.loaders[stage]:
            prefix = f"{stage}/{name}"
            for metric in self.metrics[prefix].values():
                metric.to(self.device if self.trainer.world_size > 1 else "cpu")
                figures = {f"{prefix}/{key}": value for key, value in metric.compute().items()}
                self.results.update(figures)
                self.log_dict(
                    {key: torch.tensor(value, dtype=torch.float32) for key, value in figures.items()}
                )
                metric.reset()
                metric.cpu()

    def _loader_metrics(self, settings: LoaderSettings) -> dict[str, SummedMetric[Any]]:
        accumulators: dict[str, Any] = {}
        if "loss" in settings.uses:
            accumulators |= {"loss": LossMean(), **self.slots.loss_metrics}
        if "likelihood" in settings.uses:
            accumulators["likelihood"] = LikelihoodMean()
        if "generation" in settings.uses:
            accumulators |= {"cost": GenerationCost(), **self.slots.generation_metrics}
        return {name: SummedMetric(accumulator) for name, accumulator in accumulators.items()}

    @contextmanager
    def writing(self, writer: PredictionWriter) -> Generator[None]:
        """Write everything generated meanwhile to files."""
        self.writer = writer
        try:
            yield
        finally:
            self.writer = None
            writer.close()
