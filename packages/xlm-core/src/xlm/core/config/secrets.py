"""Hides tokens and passwords in files and output.

A secret is the value of an environment variable whose name looks like a credential, or of such a key on the
command line. It is hidden wherever it occurs.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

MASK = "(hidden)"
SHORTEST = 8
"""Minimum length of a secret hidden inside other texts; shorter ones occur by chance."""
SHORTEST_WHOLE = 5
"""Minimum length of a secret hidden if it is the whole text."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
SECRETS = {
    "token", "secret", "password", "passwd", "passphrase", "passcode", "pat", "pwd", "auth", "authorization",
    "bearer", "credential", "credentials", "cookie", "apikey", "dsn",
}  # fmt: skip
"""Words that name a secret: anywhere in the name of an environment variable, at the end of a key."""
KEYS = {
    "api", "access", "secret", "private", "account", "auth", "ssh", "signing", "encryption", "client",
    "master", "license", "service", "storage", "session",
}  # fmt: skip
"""Words that make a secret with ``key`` after them; in the environment every KEY is one."""
GLUED = ("password", "passwd", "secret", "apikey", "accesskey", "secretkey", "privatekey")
"""Ends of words that need no boundary: PGPASSWORD."""
SYMBOLS = {
    "pad", "eos", "bos", "mask", "cls", "sep", "unk", "unknown", "padding", "separator", "start", "end",
    "stop", "begin", "prefix", "suffix", "special", "image", "audio", "video",
}  # fmt: skip
"""Words before ``token`` that make it a token of a vocabulary, not a secret."""
NO_CREDENTIALS = {"PWD", "OLDPWD", "SSH_AUTH_SOCK", "XAUTHORITY"}
"""Names of environment variables that only look like credentials."""
REFERENCE = re.compile(r"\$\{[\w.:]+\}")
PAIR = re.compile(r"""([\w-]+)["']?\s*[:=]\s*("[^"]*"|'[^']*'|[^,{}\[\]\s"']+)""")
"""A key and its value in an override, also inside ``{...}``."""
PASSWORD_IN_ADDRESS = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")


def _words(name: str) -> list[str]:
    words = [word.lower() for word in WORD.findall(name)]
    return words[:-1] if words[-1:] == ["id"] else words


def is_secret_key(key: str) -> bool:
    """Whether a key of a config looks like that of a secret: ``token``, ``access_key``, ``clientSecret``."""
    *before, last = ["", *_words(key)]
    if last == "token" and before and before[-1] in SYMBOLS:
        return False
    return last in SECRETS or last.endswith(GLUED) or (last in ("key", "keys") and before[-1] in KEYS)


def is_credential(name: str) -> bool:
    """Whether an environment variable looks like one that holds a secret."""
    words = _words(name)
    if name in NO_CREDENTIALS:
        return False
    return bool({*SECRETS, "key", "keys"} & set(words)) or any(word.endswith(GLUED) for word in words)


def known() -> set[str]:
    """Values to hide: credentials of the environment, and values of secret keys on the command line."""
    found = {value for name, value in os.environ.items() if is_credential(name)}
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        pairs = [*PAIR.findall(argument), (key.rpartition(".")[2], value)]
        for name, given in pairs:
            if is_secret_key(name):
                found |= {
                    part.strip("'\"") for part in (given, *given.split(",")) if not REFERENCE.fullmatch(part)
                }
    return {value for value in found if len(value) >= SHORTEST_WHOLE and not _is_place(value)}


def _is_place(value: str) -> bool:
    """Whether a value is an existing file, such as a key file."""
    return value.startswith(("/", "~")) and value.isprintable() and Path(value).expanduser().exists()


def hide(node: Any) -> Any:
    """A copy of a config without secrets.

    Hidden are the values of keys such as ``token`` or ``access_key``, unless they refer to the environment
    (``${oc.env:HF_TOKEN}``), and the secrets of the environment and the command line wherever they occur.
    """
    return _hide(node, known())


def _hide(node: Any, values: set[str]) -> Any:
    if isinstance(node, Mapping):
        entries = cast("Mapping[Any, Any]", node).items()
        return {key: _hide_entry(str(key), value, values) for key, value in entries}
    if isinstance(node, str):
        return hide_text(node, values)
    if isinstance(node, Sequence):
        return [_hide(value, values) for value in cast("Sequence[Any]", node)]
    is_number = isinstance(node, int | float) and len(str(node)) >= SHORTEST
    return MASK if is_number and str(node) in values else node


def _hide_entry(key: str, value: Any, values: set[str]) -> Any:
    if key == "_target_":
        return value
    return _mask(value) if is_secret_key(key) else _hide(value, values)


def _mask(node: Any) -> Any:
    """The value of a secret key, without its texts and numbers."""
    if isinstance(node, Mapping):
        entries = cast("Mapping[Any, Any]", node).items()
        return {key: value if key == "_target_" else _mask(value) for key, value in entries}
    if isinstance(node, str):
        return node if REFERENCE.fullmatch(node) or node == "???" else MASK
    if isinstance(node, Sequence):
        return [_mask(value) for value in cast("Sequence[Any]", node)]
    return node if node is None or isinstance(node, bool) else MASK


def hide_text(text: str, values: set[str]) -> str:
    """A text without secrets, and without the password in a URL."""
    if text in values:
        return MASK
    for value in sorted(values, key=len, reverse=True):  # one may contain another
        if len(value) >= SHORTEST:
            text = text.replace(value, MASK)
    return PASSWORD_IN_ADDRESS.sub(rf"\1{MASK}@", text)


def hide_file(file: Path) -> None:
    """Rewrite a YAML file without secrets, if it exists and holds any."""
    if file.is_file():
        import yaml  # not needed by `xlm --help`, which imports this module

        content = yaml.safe_load(file.read_text("utf-8"))
        if (hidden := hide(content)) != content:
            file.write_text(yaml.safe_dump(hidden, sort_keys=False), "utf-8")


class _HidingStream:
    """A stream of the console that prints no secrets."""

    def __init__(self, stream: TextIO, values: set[str]) -> None:
        self._stream = stream
        self._values = values

    def write(self, text: str) -> int:
        """Write a text without secrets."""
        self._stream.write(hide_text(text, self._values))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines without secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hide_from_console() -> None:
    """Hide secrets in all later output of this process, including Hydra's and tracebacks."""
    if values := known():
        sys.stdout = cast("TextIO", _HidingStream(sys.stdout, values))
        sys.stderr = cast("TextIO", _HidingStream(sys.stderr, values))
