"""What ``compile=true`` may end in: a compiler that fails, told in one message and never worked around.

The check of the slots before training uses the plain network: it runs on the CPU, before the network goes to
its device, and compiling for two rows there would say nothing about what is to run. So the compiler is at
work for the first time in the first step, where nothing is lost yet.
"""

from collections.abc import Generator
from contextlib import contextmanager

from xlm.core.config.errors import XLMError


@contextmanager
def explain_compiler(target: str) -> Generator[None]:
    """Turn what ``torch.compile`` raises inside into one message.

    Args:
        target: Class of the network, as the config names it.

    Raises:
        XLMError: When the compiler failed.
    """
    from torch._dynamo.exc import TorchDynamoException  # importing the compiler takes seconds
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        yield
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise XLMError(
            f"compile: torch.compile failed on the network {target} (key `model`): {' '.join(lines[:2])}\n"
            "It is not run uncompiled in its place. Set compile=false, or mend what the compiler needs; "
            "HYDRA_FULL_ERROR=1 shows all that it said."
        ) from error
