"""Which of several processes this is, before Lightning knows."""

import os


def is_first() -> bool:
    """Whether this process is the one that talks and writes (torchrun, SLURM, Lightning's own launcher)."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0")) == 0
