"""Completion of ``xlm`` in a shell, from file names alone, without composing a config."""

from xlm.core.command.discovery import providers
from xlm.core.config.errors import XLMError

SCRIPTS = {
    "bash": """\
_xlm() {
    local word="${COMP_LINE:0:COMP_POINT}"
    word="${word##* }"
    mapfile -t COMPREPLY < <(xlm --complete "$word" 2>/dev/null)
    # Bash takes "=" for the end of a word: what stands before it must not be repeated.
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
    fi
    compopt -o nospace 2>/dev/null
}
complete -F _xlm xlm
""",
    "zsh": """\
#compdef xlm
_xlm() {
    local -a found
    found=("${(@f)$(xlm --complete "$PREFIX" 2>/dev/null)}")
    compadd -S '' -- $found
}
compdef _xlm xlm
""",
    "fish": """\
complete -c xlm -f -a '(xlm --complete (commandline -ct))'
""",
}


def script(shell: str) -> str:
    """The completion script of a shell.

    Raises:
        XLMError: If the shell is unknown.
    """
    if shell not in SCRIPTS:
        raise XLMError(f"--completion {shell}: no such shell. Known: {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


def candidates(word: str, keys: list[str], jobs: list[str]) -> list[str]:
    """Completions of an unfinished word.

    Args:
        word: The unfinished word, such as ``experiment=star_``.
        keys: Keys and options of the command line, those with a value ending in ``=``.
        jobs: Values of ``job_type``.
    """
    written, separator, value = word.partition("=")
    if not separator:
        sign = word[:1] if word[:1] in ("+", "~") else ""
        found = [f"{sign}{key}" for key in keys if key.startswith(word.removeprefix(sign))]
        return (
            [key.removesuffix("=") for key in found] if sign == "~" else found
        )  # ~KEY drops, without a value
    # A sweep lists several values: the last one is unfinished.
    done, comma, unfinished = value.rpartition(",")
    options = jobs if written == "job_type" else list(providers(written.lstrip("+")))
    return [f"{written}={done}{comma}{option}" for option in options if option.startswith(unfinished)]
