"""How this machine's processor computes: the threads of an operation, and whether half precision is fast."""

import os
import time

import torch

SIDE = 256
"""Of the square matrices whose product is timed: about a millisecond in float32, whatever the processor."""


def describe_threads() -> str:
    """Threads of one operation on the CPU, and what they do while they wait for one another."""
    waiting = os.environ.get("OMP_WAIT_POLICY", "chosen by OpenMP").lower()
    return f"{torch.get_num_threads()} on the CPU (OMP_NUM_THREADS), waiting: {waiting} (OMP_WAIT_POLICY)"


def slowdown(dtype: torch.dtype) -> float:
    """Time of a matrix product in ``dtype`` divided by that in float32, on this CPU.

    Measured, since torch has no public answer: processors without bfloat16 or float16 instructions emulate
    them, 50 times slower than float32.
    """
    return _seconds(dtype) / _seconds(torch.float32)


def note_on_precision(precision: str) -> str | None:
    """A line for the user when half precision makes this CPU slower; None when it does not.

    Args:
        precision: As ``trainer.precision``.
    """
    if "16" not in precision:
        return None
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16
    factor = slowdown(dtype)
    if factor <= 1:
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"trainer.precision={precision}: a matrix product in {name} takes {factor:.1f} times as long as in "
        "float32 on this CPU; trainer.precision=32-true is faster"
    )


def _seconds(dtype: torch.dtype) -> float:
    matrix = torch.ones(SIDE, SIDE, dtype=dtype)
    seconds: list[float] = []
    for _ in range(4):  # the fastest: the first makes the kernel ready, another process may stop one
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
