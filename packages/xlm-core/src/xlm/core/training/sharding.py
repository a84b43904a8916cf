"""FSDP2: weights, gradients and optimizer state are sharded over the processes.

Sharding follows a rule, not a list of classes: each member of each ``nn.ModuleList`` of the network (its
blocks) is gathered separately, the rest of the network together.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from typing_extensions import override

from xlm.core.config.errors import XLMError
from xlm.core.saving.checkpoints import remove, replace_folder
from xlm.core.saving.sharded_state import sharded_modules

CAN_SHARD_ON_CPUS = hasattr(FSDPModule, "set_force_sum_reduction_for_comms")
"""First torch version whose FSDP2 runs without averaging, which gloo lacks."""


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy, with all processes in the data-parallel group.

    A checkpoint is one file, gathered in the memory of rank 0, as with any other strategy.

    Args:
        save_distributed_checkpoint: Write a folder instead, in which each process saves its part.
            Incompatible with EMA; ``job_type=export`` merges it into one file.
    """

    def __init__(self, *, save_distributed_checkpoint: bool = False) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
        )

    @property
    def writes_folders(self) -> bool:
        """Whether a checkpoint is a folder."""
        return self._save_distributed_checkpoint

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if not self.writes_folders:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        part = path.with_name(f".{path.name}.part")
        if self.is_global_zero:
            remove(part)  # a partial one of a killed process
        self.barrier()
        super().save_checkpoint(checkpoint, part, storage_options)
        self.barrier()
        if self.is_global_zero:
            replace_folder(part, path)
        self.barrier()


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the weights of a network.

    Args:
        network: Changed in place; weights keep their dtype.
        mesh: Device mesh of Lightning's ModelParallelStrategy.

    Raises:
        XLMError: If the mesh has tensor parallelism, which needs a plan for each network, or torch is too
            old for a mesh of CPUs.
    """
    if mesh["tensor_parallel"].size() != 1:
        raise XLMError(
            f"trainer.strategy: tensor_parallel_size is {mesh['tensor_parallel'].size()}. Weights are "
            "sharded over data-parallel processes only: set tensor_parallel_size to 1 and data_parallel_size "
            "to the number of processes, or use +trainer/strategy=fsdp2, which does so"
        )
    if mesh.device_type == "cpu" and not CAN_SHARD_ON_CPUS:
        raise XLMError(
            f"trainer.strategy: torch {torch.__version__} cannot shard on CPUs. Update torch, or take "
            "trainer.strategy=ddp"
        )
    blocks = [
        block for lists in network.modules() if isinstance(lists, nn.ModuleList) for block in lists.children()
    ]
    for module in [*blocks, network]:
        # By default the root would stay gathered after an evaluation, and hide the shards from the average.
        sharded = fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True)
        if mesh.device_type == "cpu":
            sharded.set_force_sum_reduction_for_comms(True)  # gloo cannot average


def gather(module: nn.Module) -> None:
    """Gather the whole weights on each process until :func:`release`, if they are sharded.

    Processes can then evaluate different rows independently, each with its own number of network calls.
    """
    for part in sharded_modules(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def release(module: nn.Module) -> None:
    """Undo :func:`gather`, if it was called."""
    for part in sharded_modules(module):
        part.set_reshard_after_forward(True, recurse=False)
        part.reshard()
