"""Properties of the processor: threads of an operation, and the speed of half precision."""

import os
import time

import torch

SIDE = 256
"""Size of the square matrices whose product is timed: about a millisecond in float32 on common processors."""


def describe_threads() -> str:
    """Number of threads of an operation on the CPU, and their wait policy."""
    waiting = os.environ.get("OMP_WAIT_POLICY", "chosen by OpenMP").lower()
    return f"{torch.get_num_threads()} on the CPU (OMP_NUM_THREADS), waiting: {waiting} (OMP_WAIT_POLICY)"


def slowdown(dtype: torch.dtype) -> float:
    """Time of a matrix product in ``dtype`` divided by that in float32, on this CPU.

    Measured, since torch has no public query: processors without bfloat16 or float16 instructions emulate
    them, 50 times slower than float32.
    """
    return _seconds(dtype) / _seconds(torch.float32)


def note_on_precision(precision: str) -> str | None:
    """A warning if half precision is slower on this CPU, else None.

    Args:
        precision: Value of ``trainer.precision``.
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
    for _ in range(4):  # take the fastest: the first warms up the kernel, another process may delay one
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
