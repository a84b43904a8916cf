"""The exception for mistakes of the user, as opposed to bugs."""


class XLMError(Exception):
    """A mistake in the configuration, the data or the command line.

    The command line prints its message without a stack trace and exits with ``exit_code``, so the message
    names the value, its key or file, and the remedy.
    """

    exit_code = 1
