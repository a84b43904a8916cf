"""Pushing a model to the Hugging Face Hub in one commit."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from xlm.core.config.console import say
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import HubSettings
from xlm.core.evaluation import report
from xlm.core.hub.export import write_folder
from xlm.core.hub.repository import explained
from xlm.core.saving.folder import INDEX, PART, SINGLE_FILE
from xlm.core.training.run import Run

MAIN = "main"


@dataclass(frozen=True)
class Difference:
    """The changes of a push in the repository."""

    new: list[str]
    changed: list[str]
    unchanged: list[str]
    removed: list[str]
    """Weights of an earlier push that would be read together with the new ones."""


def push_to_hub(run: Run) -> dict[str, float]:
    """Write the folder of the model and push it; with ``hub.dry_run`` only write it."""
    hub = run.settings.hub
    if not hub.dry_run and get_token() is None:
        raise XLMError(
            "hub.repo_id: there is no token to push with. Log in with `hf auth login` or set HF_TOKEN; "
            "hub.dry_run=true writes the files without pushing"
        )
    folder = write_folder(run)
    files = {path.name: path for path in sorted(folder.iterdir())}
    if hub.dry_run or hub.repo_id is None:
        say("Dry run: nothing was pushed.")
        report.print_files(files)
        return {}
    try:
        url = push_folder(folder, hub.repo_id, hub, message=f"Push {run.settings.job_name} with XLM")
    except XLMError as error:
        raise XLMError(f"{error}\nThe files are in {folder}. Run the same command again to push.") from error
    report.print_files(files)
    say(f"Pushed: {url}")
    return {}


def push_folder(folder: Path, repo_id: str, hub: HubSettings, *, message: str) -> str:
    """Push the files of ``folder`` in one commit.

    Args:
        folder: The folder.
        repo_id: USER/REPO, created if it does not exist.
        hub: Branch and kind of commit.
        message: Message of the commit, if the settings have none.

    Returns:
        The URL of the commit or of the pull request; of the repository if nothing has changed.

    Raises:
        XLMError: If the Hub rejects them, with the reason. Nothing is pushed then.
    """
    api = HfApi()
    revision = hub.revision or MAIN
    with explained(f"hub.repo_id: cannot push to {repo_id}"):
        remote = _remote_files(api, repo_id, revision)
        if remote is None:
            remote = _create(api, repo_id, revision, hub)
        difference = compare(folder, remote)
        _tell(difference, f"{repo_id}@{revision}")
        if not (difference.new or difference.changed or difference.removed):
            return f"{api.endpoint}/{repo_id} (nothing has changed)"
        operations = [
            *(CommitOperationAdd(name, folder / name) for name in [*difference.new, *difference.changed]),
            *(CommitOperationDelete(name) for name in difference.removed),
        ]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=hub.commit_message or message,
            revision=None if hub.create_pr else revision,
            create_pr=hub.create_pr,
        )
    return commit.pr_url or commit.commit_url


def _remote_files(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile] | None:
    """Files of the repository at the revision, by name; None if one of the two does not exist."""
    try:
        entries = api.list_repo_tree(repo_id, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None


def _create(api: HfApi, repo_id: str, revision: str, hub: HubSettings) -> dict[str, RepoFile]:
    """Create the repository and the branch if they do not exist."""
    api.create_repo(repo_id, private=hub.private, exist_ok=True)
    if revision != MAIN:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return _remote_files(api, repo_id, revision) or {}


def compare(folder: Path, remote: dict[str, RepoFile]) -> Difference:
    """Compare local files with those of the repository, by the hashes of git and LFS."""
    local = {path.name: path for path in sorted(folder.iterdir())}
    new = [name for name in local if name not in remote]
    changed = [name for name in local if name in remote and not _is_same(local[name], remote[name])]
    weights = [name for name in remote if PART.fullmatch(name) or name in (SINGLE_FILE, INDEX)]
    return Difference(
        new=new,
        changed=changed,
        unchanged=[name for name in local if name not in new and name not in changed],
        removed=[name for name in weights if name not in local],
    )


def _is_same(file: Path, remote: RepoFile) -> bool:
    if file.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == remote.lfs.sha256
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id  # git's


def _tell(difference: Difference, where: str) -> None:
    def parts() -> Iterator[str]:
        if difference.new:
            yield f"new {', '.join(difference.new)}"
        if difference.changed:
            yield f"OVERWRITTEN {', '.join(difference.changed)}"
        if difference.removed:
            yield f"REMOVED {', '.join(difference.removed)}"
        if difference.unchanged:
            yield f"unchanged {', '.join(difference.unchanged)}"

    say(f"{where}: {'; '.join(parts())}.")
