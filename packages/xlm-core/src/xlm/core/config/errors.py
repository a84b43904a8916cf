"""The one exception that stands for a mistake of the user, not of the program."""


class XLMError(Exception):
    """A mistake in the configuration, the data or the command line.

    The command line prints its message without a stack trace and exits with ``exit_code``, so the message
    says what was found, where, and what to do about it.
    """

    exit_code = 1
