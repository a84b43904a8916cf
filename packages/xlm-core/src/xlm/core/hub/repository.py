"""Repositories of the Hub: their names in configs, their files, and one-line error messages."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from huggingface_hub import errors, set_client_factory, snapshot_download
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils._http import default_client_factory

from xlm.core.config.errors import XLMError

PREFIX = "hf://"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")
"""Files that loading a network needs."""


SECONDS = 30
"""Timeout in seconds without data from the Hub."""


def make_client() -> Any:
    """The client's HTTP client with a timeout for every request, which it lacks by default."""
    client = default_client_factory()  # private: nothing public makes a client with the library's own hooks
    client.event_hooks["request"].append(_limit)
    return client


def _limit(request: Any) -> None:
    given = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        name: given.get(name) or SECONDS for name in ("connect", "read", "write", "pool")
    }


set_client_factory(make_client)


@dataclass(frozen=True)
class HubModel:
    """A model of the Hub, at a branch, tag or commit."""

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``hf://USER/REPO`` or ``hf://USER/REPO@REVISION``; None for anything without ``hf://``.

        Raises:
            XLMError: If the name is invalid.
        """
        if not text.startswith(PREFIX):
            return None
        repo_id, separator, revision = text.removeprefix(PREFIX).partition("@")
        check_repo_id(repo_id, "ckpt_path")
        if separator and not revision:
            raise XLMError(f"ckpt_path: {text} ends with @; a branch, tag or commit must follow")
        return cls(repo_id, revision or None)

    def __str__(self) -> str:
        return PREFIX + self.repo_id + (f"@{self.revision}" if self.revision else "")

    def fetch(self, patterns: tuple[str, ...] = WEIGHTS) -> Path:
        """Download files that match (or find them in the cache); returns the folder.

        Raises:
            XLMError: If the model is unavailable, with the reason.
        """
        with explained(f"ckpt_path: cannot load {self}"):
            folder = snapshot_download(
                self.repo_id, revision=self.revision, allow_patterns=list(patterns), etag_timeout=30
            )
        return Path(folder)


def local_folder(ckpt_path: str) -> Path | None:
    """The folder that ``ckpt_path`` names, downloaded if it is a model of the Hub; None for a file.

    Raises:
        XLMError: If the model is unavailable.
    """
    model = HubModel.parse(ckpt_path)
    if model is not None:
        return model.fetch()
    folder = Path(ckpt_path).expanduser()
    return folder if folder.is_dir() and not (folder / ".metadata").exists() else None


def check_repo_id(repo_id: str, key: str) -> None:
    """Reject an invalid name of a repository.

    Raises:
        XLMError: If it is not a name; states the form of one.
    """
    try:
        validate_repo_id(repo_id)
    except errors.HFValidationError as error:
        raise XLMError(f"{key}: {repo_id!r} is not a name of a repository: {one_line(error)}") from error
    if "/" not in repo_id:
        raise XLMError(f"{key}: {repo_id!r} is not a name of a repository: it needs an owner, USER/{repo_id}")


@contextmanager
def explained(doing: str) -> Generator[None]:
    """Turn errors of the Hub and the connection into one line.

    Raises:
        XLMError: If the client or the connection fails.
    """
    try:
        yield
    except XLMError:
        raise
    except Exception as error:
        # The client wraps errors during an upload.
        reason = _reason(error) or (error.__cause__ and _reason(error.__cause__))
        if not reason:
            raise
        raise XLMError(f"{doing}: {reason}") from error


def _reason(error: BaseException) -> str | None:
    """One line about an error of the client or the connection, None for any other."""
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not contacted"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"it is not in the cache, and the Hub cannot be reached ({one_line(error)})"
    if isinstance(error, errors.HFValidationError | errors.LocalTokenNotFoundError):
        return one_line(error)
    if isinstance(error, ValueError | LookupError | TypeError | AttributeError):
        return f"the server is not a Hub ({type(error).__name__}: {one_line(error)}). Is HF_ENDPOINT right?"
    library = type(error).__module__.split(".")[0]  # the HTTP library of the client, which may change
    if library.startswith(("httpx", "httpcore")) and "Timeout" in type(error).__name__:
        return f"the Hub did not answer within {SECONDS} s"
    if isinstance(error, OSError) or library.startswith(("httpx", "httpcore")):
        return f"the connection failed ({type(error).__name__}: {one_line(error)})"
    return None


def _refusal(error: errors.HfHubHTTPError) -> str:
    if isinstance(error, errors.GatedRepoError):
        return "access must be requested on its page, or your token may not read it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such branch, tag or commit"
    status = error.response.status_code
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return (
            "there is no such repository, or it is private and your token may not read it. "
            "Log in with `hf auth login` or set HF_TOKEN"
        )
    if status == 403:
        return f"your token lacks the permission ({one_line(error)})"
    return f"the Hub answered with an error ({one_line(error)})"


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks, or its name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
