"""Signals that stop training: recorded when received, effective between two optimizer steps."""

import os
import signal
import subprocess
from types import FrameType

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from xlm.core.config.errors import XLMError


class InterruptedTrainingError(XLMError):
    """A signal stopped the training before its end.

    Args:
        signum: The signal; 0 if another process received it.
        step: Optimizer steps done.
    """

    def __init__(self, signum: int, step: int) -> None:
        name = signal.Signals(signum).name if signum else "a signal to another process"
        super().__init__(f"stopped by {name} after step {step}")
        self.signum = signum or signal.SIGTERM
        self.exit_code = 128 + self.signum
        """Exit code by which a shell reports a process ended by a signal."""


class Interruption:
    """Handles SIGINT, SIGTERM and, under SLURM, its notice of the time limit (SIGUSR1).

    A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.signum = 0
        """The first received signal, 0 before."""

    def install(self) -> None:
        """Install the handlers; Lightning's trainer restores the old ones at its end."""
        signals = [signal.SIGINT, signal.SIGTERM]
        if SLURMEnvironment.detect() and hasattr(signal, "SIGUSR1"):
            signals.append(signal.SIGUSR1)
        for signum in signals:
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
            return
        if not self.signum:
            self.signum = signum
            # Not print(): a handler may interrupt another print.
            name = signal.Signals(signum).name
            again = " (again: exit immediately, without a checkpoint)" if signum == signal.SIGINT else ""
            os.write(2, f"\n{name}: stopping after this step{again}\n".encode())


def requeue(signum: int) -> str | None:
    """Requeue a SLURM job that reached its time limit.

    Args:
        signum: The signal that stopped the training.

    Returns:
        A message, None if there was nothing to do.
    """
    if not (SLURMEnvironment.detect() and signum == getattr(signal, "SIGUSR1", None)):
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return f"could not requeue job {job}: scontrol is not installed"
    if done.returncode != 0:
        return f"could not requeue job {job}: {done.stderr.strip()}"
    return f"job {job} is requeued"
