"""Reports torch.compile failures in one message; never falls back to eager.

The check of the slots before training uses the uncompiled network: it runs on the CPU, before the network
moves to its device, and compiling for two rows there is no test of the run. So the first step compiles,
before any work could be lost.
"""

from collections.abc import Generator
from contextlib import contextmanager

from xlm.core.config.errors import XLMError


@contextmanager
def explain_compiler(target: str) -> Generator[None]:
    """Turn an exception of ``torch.compile`` inside this context into one message.

    Args:
        target: Class of the network in the config.

    Raises:
        XLMError: If the compiler fails.
    """
    from torch._dynamo.exc import TorchDynamoException  # importing the compiler takes seconds
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        yield
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise XLMError(
            f"compile: torch.compile failed on the network {target} (key `model`): {' '.join(lines[:2])}\n"
            "There is no fallback to eager mode. Set compile=false, or repair the compiler; "
            "HYDRA_FULL_ERROR=1 shows its full output."
        ) from error
