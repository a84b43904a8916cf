"""The rank of this process, before Lightning sets it."""

import os


def is_first() -> bool:
    """Whether this process has rank 0, which prints and writes (torchrun, SLURM, Lightning's launcher)."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0")) == 0
