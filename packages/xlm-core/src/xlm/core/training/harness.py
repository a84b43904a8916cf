"""The LightningModule that holds the slots and delegates to them.

It handles batches, sums, counts and ids, and is independent of model families.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import override

from xlm.core.config.format import FORMAT_VERSION
from xlm.core.config.schema import LoaderSettings, Stage
from xlm.core.data import LoadedBatch
from xlm.core.evaluation.evaluation import Evaluation
from xlm.core.evaluation.progress import Progress
from xlm.core.evaluation.slots import Slots
from xlm.core.saving import resume
from xlm.core.saving.checkpoints import FORMAT_KEY
from xlm.core.saving.sharded_state import is_sharded, put_whole_state, whole
from xlm.core.training.fork import Fork
from xlm.core.training.interruption import InterruptedTrainingError, Interruption
from xlm.core.training.logged_texts import log_texts
from xlm.core.training.loop_state import to_step_boundary
from xlm.core.training.sharding import gather, release, shard
from xlm.core.training.step import MeanCount, StepWatch, Window
from xlm.core.training.stopwatch import Stopwatch
from xlm.modules import row_seeds


class Harness(lightning.LightningModule):
    """Trains and evaluates the objects of the slots.

    Args:
        slots: The objects.
        loaders: Settings of the loaders, by stage and name, in the data module's order.
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
        self.evaluation = Evaluation(slots, loaders)
        self.seed = seed
        self.results: dict[str, float] = {}
        # In a tuple, hence outside the module tree: checkpoints have the keys of the uncompiled network.
        self._compiled = (torch.compile(self.model),) if compile_network else ()
        self.interruption = Interruption()
        tokenizer = slots.tokenizer
        # Named here, since FSDP2 changes the class of the network.
        self.origin = {
            "network": class_name(self.model),
            "loss": class_name(slots.loss),
            "tokenizer": " ".join(
                map(str, (class_name(tokenizer), tokenizer.vocab_size, getattr(tokenizer, "fingerprint", "")))
            ).rstrip(),
        }
        """Description of the run in its checkpoints."""
        self.progress: Progress | None = None
        """What is done of an evaluation that can be continued."""
        self.fork: Fork | None = None
        """The run whose state this one starts from with changed settings."""
        self.between_steps = True
        """Whether the weights, their average and the optimizer belong to the same step."""
        self.logs_gradient_norm = False
        """Whether the norm of all gradients, before clipping, is logged (one more pass over them)."""
        bucketed = any(loader.bucketing for loader in loaders.get("train", {}).values())
        self._mean_count = MeanCount() if bucketed else None
        self._window = Window()
        self._watch = StepWatch()
        self._stopwatch = Stopwatch()
        self._validated_step = 0

    @property
    def network(self) -> nn.Module:
        """The network to call: compiled if requested."""
        return cast("nn.Module", self._compiled[0]) if self._compiled else self.model

    @property
    def last_loss(self) -> float | None:
        """Mean training loss of the previous step, without synchronisation; None in the first step."""
        return self._watch.loss

    @property
    def totals(self) -> dict[str, float]:
        """Tokens of all processes and seconds of the training so far, without its validations."""
        return {"tokens": self._watch.num_tokens, "seconds": self._stopwatch.seconds}

    @override
    def configure_model(self) -> None:
        """Shard the network if the strategy is FSDP2; other strategies wrap the whole module."""
        if self.device_mesh is not None and not is_sharded(self.model):
            self.trainer.precision_plugin.convert_module(self.model)
            shard(self.model, self.device_mesh)

    # ---- training -----------------------------------------------------------------------------------

    @override
    def on_train_start(self) -> None:
        self.interruption.install()
        if self.fork is not None:
            [optimizer], [schedule] = self.trainer.optimizers, self.trainer.lr_scheduler_configs
            self.fork.apply_options(optimizer, schedule.scheduler, *self._fresh_optimizer())
        self._stopwatch.start()

    @override
    def on_train_end(self) -> None:
        self._look_at_last_step()
        self._stopwatch.stop()

    @override
    def on_train_batch_start(self, batch: LoadedBatch[Any], batch_idx: int) -> None:
        accumulated = self.trainer.accumulate_grad_batches
        micro_batch = self.trainer.global_step * accumulated + batch_idx % accumulated
        place = torch.tensor([micro_batch * self.trainer.world_size + self.global_rank])
        torch.manual_seed(int(row_seeds(self.seed, 0, place)))

    @override
    def training_step(self, batch: LoadedBatch[Any], batch_idx: int) -> Tensor:
        output = self.slots.loss(self.network, batch.batch)
        self._window.add(output, batch, batch_idx)
        if self._divides_early:
            count = cast("Tensor", self.trainer.strategy.reduce(output.loss_count.float(), reduce_op="sum"))
            return output.loss_sum * self.trainer.world_size / self._divisor(count)
        # Lightning divides by this number; the plain sum is accumulated instead.
        return output.loss_sum * self.trainer.accumulate_grad_batches

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn gradients of the sum into gradients of the mean over all ranks and micro-batches."""
        self._look_at_last_step()
        self._stop_if_asked()
        self.between_steps = False
        window, self._window = self._window, Window()
        assert window.count is not None
        world_size = self.trainer.world_size
        names = list(window.sums)
        wants_to_stop = window.count.new_full((), bool(self.interruption.signum), dtype=torch.float32)
        num_tokens = wants_to_stop.new_full((), window.num_tokens)
        numbers = [num_tokens, window.count, *(window.sums[name] for name in names)]
        sums = torch.stack([wants_to_stop, *(number.float() for number in numbers)])
        if world_size > 1:
            sums = cast("Tensor", self.trainer.strategy.reduce(sums, reduce_op="sum"))
        self._watch.watch(self.trainer.global_step + 1, window, sums)
        count = sums[2].clamp(min=1)
        if not self._divides_early:
            gradients = [
                p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            # DDP has averaged the gradients over ranks, hence the factor.
            torch._foreach_mul_(gradients, world_size / self._divisor(sums[2]))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]  # torch's own optimizers use it; it has no public name
            if self.logs_gradient_norm and (self.trainer.global_step + 1) % self._log_interval == 0:
                self.log("train/gradient_norm", whole(torch.nn.utils.get_total_norm(gradients)))
        means = sums[3:] / count
        # Not for the progress bar, since Lightning would synchronise with the device in every step.
        self.log("train/loss", means[0])
        self.log_dict({f"train/{name}": mean for name, mean in zip(names[1:], means[1:], strict=True)})

    def _divisor(self, count: Tensor) -> Tensor:
        """The number by which a step with this count divides its gradients."""
        return (count if self._mean_count is None else self._mean_count.add(count)).clamp(min=1)

    @override
    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: LoadedBatch[Any], batch_idx: int) -> None:
        if self._window.count is None:  # an optimizer step is done, and all callbacks have run
            self.between_steps = True
            self._stop_if_asked()

    def _look_at_last_step(self) -> None:
        self._watch.check(Path(self.trainer.default_root_dir), self.global_rank)

    def _stop_if_asked(self) -> None:
        """Stop between two steps, the same ones in all processes."""
        alone = self.trainer.world_size == 1
        if self.interruption.signum if alone else self._watch.stop_wanted:
            raise InterruptedTrainingError(self.interruption.signum, self.trainer.global_step)

    @property
    def _divides_early(self) -> bool:
        """Whether the gradients are inside DeepSpeed's engine, which does not expose them."""
        return isinstance(self.trainer.strategy, DeepSpeedStrategy)

    @property
    def _log_interval(self) -> int:
        return cast("int", self.trainer.log_every_n_steps)  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector

    # ---- checkpoints --------------------------------------------------------------------------------

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[FORMAT_KEY] = FORMAT_VERSION
        checkpoint["xlm_origin"] = self.origin
        if self._mean_count is not None:
            checkpoint["xlm_mean_count"] = self._mean_count.state_dict()
        if not self.trainer.training and not self.trainer.validating:
            return
        self._look_at_last_step()
        checkpoint["xlm_stopped_early"] = self.trainer.should_stop
        checkpoint["xlm_totals"] = self.totals
        validated = self._validated_step == self.trainer.global_step
        to_step_boundary(checkpoint, self.trainer, self.trainer.global_step, validated=validated)
        for logger in self.trainer.loggers:
            logger.save()  # a kill would lose buffered metrics

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        totals = checkpoint.get("xlm_totals", {})
        self._watch.num_tokens = totals.get("tokens", 0)
        self._stopwatch = Stopwatch(totals.get("seconds", 0.0))
        if self.fork is not None:
            self.fork.adapt(checkpoint, self.trainer)
        elif self._mean_count is not None:  # a fork may have other batches
            self._mean_count = MeanCount(**checkpoint.get("xlm_mean_count", {}))
        callbacks = cast("list[Callback]", self.trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
        averages = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if "current_model_state" in checkpoint and not averages:
            # Its state_dict is the average, which does not match the optimizer state.
            checkpoint["state_dict"] = checkpoint["current_model_state"]
            if is_sharded(self):  # Lightning has loaded the average before
                put_whole_state(self, checkpoint["current_model_state"])

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = self._fresh_optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _fresh_optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = self.slots.optimizer(self.model.named_parameters())
        return optimizer, self.slots.lr_scheduler(optimizer, num_steps=self.trainer.max_steps)

    def misfit(self, checkpoint: Mapping[str, Any], *, any_loss: bool = False) -> str | None:
        """Explain why a checkpoint does not fit this run (``any_loss``: up to its loss); None if it fits."""
        origin = {name: value for name, value in self.origin.items() if not (any_loss and name == "loss")}
        weights = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        groups = self.slots.optimizer(self.model.named_parameters()).param_groups
        return resume.misfit(checkpoint, weights, [len(group["params"]) for group in groups], origin)

    # ---- evaluation ---------------------------------------------------------------------------------

    @override
    def validation_step(self, batch: LoadedBatch[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._stop_if_asked()
        self.evaluation.update("val", dataloader_idx, self.network, batch)

    @override
    def on_test_start(self) -> None:
        self.evaluation.texts.forget()
        writer = self.evaluation.texts.writer
        if writer is not None:
            # Each process has named the folder after its own clock.
            writer.folder = self.trainer.strategy.broadcast(writer.folder)
            if self.progress is None:
                writer.open()
            else:
                self.progress.resume(self.evaluation, writer)

    @override
    def test_step(self, batch: LoadedBatch[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.progress is not None and self.progress.is_done(dataloader_idx, batch_idx):
            return
        self.evaluation.update("test", dataloader_idx, self.network, batch)
        if self.progress is not None and (writer := self.evaluation.texts.writer) is not None:
            self.progress.add(dataloader_idx, batch_idx, self.evaluation, writer)

    @override
    def on_validation_start(self) -> None:
        self._look_at_last_step()
        self._stopwatch.stop()
        self.evaluation.texts.forget()

    @override
    def on_validation_end(self) -> None:
        self._stopwatch.start()

    @override
    def on_validation_epoch_start(self) -> None:
        gather(self.model)  # after the average was loaded

    @override
    def on_validation_epoch_end(self) -> None:
        self._report("val")
        self._log("training/", self.totals)
        release(self.model)
        self._validated_step = self.trainer.global_step

    @override
    def on_test_epoch_start(self) -> None:
        gather(self.model)

    @override
    def on_test_epoch_end(self) -> None:
        if self.progress is not None:
            self.progress.store()  # another process may still end before all have met in the sums
        self._report("test")
        release(self.model)

    def _report(self, stage: Stage) -> None:
        alone = self.trainer.world_size == 1
        results = self.evaluation.report(stage, torch.device("cpu") if alone else self.device)
        self.results.update(results)
        self._log("", results)
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            log_texts(self.trainer.loggers, self.evaluation.texts, self.trainer.global_step)

    def _log(self, prefix: str, numbers: Mapping[str, float]) -> None:
        tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in numbers.items()}
        self.log_dict({f"{prefix}{name}": value for name, value in tensors.items()})


def class_name(thing: object) -> str:
    """The class of an object, as ``module.Class``."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
