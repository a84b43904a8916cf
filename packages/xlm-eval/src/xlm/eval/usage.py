"""Memory and processor time of the job, as far as it has come."""

import os
import sys
from typing import TypedDict

import torch

MEGABYTE = 10**6


class Memory(TypedDict):
    """Peak memory of a process."""

    of: str
    """What was measured, one of two numbers that differ by far: ``gpu_allocated`` (bytes of tensors on the
    GPU by torch's count, without its reserve and the driver's context) or ``resident`` (bytes of the whole
    process in the memory of the machine, libraries included)."""
    megabytes: float


def peak_memory() -> Memory | None:
    """Highest use of memory since the start of this process; None on Windows without a GPU."""
    if allocated := torch.cuda.max_memory_allocated():
        return {"of": "gpu_allocated", "megabytes": allocated / MEGABYTE}
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"of": "resident", "megabytes": resident / MEGABYTE}


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended, over all threads."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
