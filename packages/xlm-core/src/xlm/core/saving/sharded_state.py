"""State dicts of networks whose weights may be sharded over processes."""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def sharded_modules(module: nn.Module) -> Iterator[FSDPModule]:
    """The parts of a module that FSDP2 has sharded."""
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds shards of the weights."""
    return next(sharded_modules(module), None) is not None


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole weights, on the CPU of the first process. Every process must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, Tensor]", get_model_state_dict(module, options=options))


def put_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole weights, which every process has, into a module that may be sharded."""
    if not is_sharded(module):
        module.load_state_dict(state)
        return
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))


def whole(value: Tensor) -> Tensor:
    """A number over all shards as a plain tensor."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """The shard of a weight in this process."""
    return value.to_local() if isinstance(value, DTensor) else value


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy weights between two modules that are sharded alike."""
    with torch.no_grad():
        for mine, other in zip(target.parameters(), source.parameters(), strict=True):
            mine.copy_(other)
