"""Operations of a training step and peak rates of the device, for the fraction of its peak."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def scored_cells(family: str, batch: Mapping[str, Any]) -> int:
    """Cells at which the output layer is needed."""
    name = {"arlm": "target_row", "ilm": "scored_row"}.get(family, "masked_row")
    return len(batch[name])


def training_flops(family: str, model: nn.Module, batch: Mapping[str, Any]) -> float:
    """Floating-point operations of the matrix products of one step, forward (1) and backward (2).

    6 for each weight of a block and real token, 12 d L^2 for the attention of a block and a row of L tokens
    (half of it in a causal network, which needs no more), 6 d V for each cell whose logits are needed.
    Recomputation and padding are not counted.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1).cpu()
    per_token = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".blocks." in name and "modulation" not in name
    )
    blocks = sum(name.endswith(".attention") for name, _ in model.named_modules())
    d_model, vocab_size = model.token_head.in_features, model.token_head.out_features
    squares = float((lengths.double() ** 2).sum()) * (0.5 if family == "arlm" else 1.0)
    return (
        6.0 * per_token * float(lengths.sum())
        + 12.0 * blocks * d_model * squares
        + 6.0 * d_model * vocab_size * scored_cells(family, batch)
    )


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Mean seconds of one repeat, with synchronisations before and after."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    """Synchronise with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops(device: torch.device, size: int) -> float:
    """Operations a second of a bfloat16 product of two random square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    multiply = lambda: torch.mm(left, right, out=out)  # noqa: E731
    seconds_of(multiply, device, 3)
    return 2.0 * size**3 / seconds_of(multiply, device, 10)


def copy_bytes(device: torch.device, megabytes: int) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    copy = lambda: target.copy_(source)  # noqa: E731
    seconds_of(copy, device, 3)
    return 2.0 * source.nbytes / seconds_of(copy, device, 10)


def attention_kernels(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Names of the attention kernels, and the five slowest kernels, of a function."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work()
        wait(device)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        on_device = event.self_device_time_total if cuda else event.self_cpu_time_total
        is_kernel = not cuda or event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel and on_device > 0 and not event.is_user_annotation:
            times[event.key] = times.get(event.key, 0.0) + on_device
    total = sum(times.values())
    marks = ("flash", "fmha", "attention", "sdpa", "efficient")
    ordered = sorted(times, key=lambda name: -times[name])
    return {
        "attention": [shorten(name) for name in ordered if any(mark in name.lower() for mark in marks)][:4],
        "longest": {shorten(name): round(times[name] / total, 3) for name in ordered[:8]},
    }


def shorten(name: str) -> str:
    """A kernel's name without its arguments."""
    return name.removeprefix("void ").split("(")[0].split("<")[0][:70]


def gradient_norm(model: nn.Module) -> float:
    """Total gradient norm."""
    gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
