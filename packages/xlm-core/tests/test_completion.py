"""Completion of words, and in a real shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xlm.core.command import cli
from xlm.core.command.discovery import ConfigPackage
from xlm.core.config.errors import XLMError


@pytest.fixture(autouse=True)
def two_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    for name in ("star_tiny", "star_hard", "other"):
        (folder / f"{name}.yaml").write_text("")
    package = ConfigPackage("a", "xlm-a", tmp_path / "configs")
    monkeypatch.setattr("xlm.core.command.discovery.config_packages", lambda: (package,))


WORDS = {
    "exp": ["experiment="],
    "experiment=star_": ["experiment=star_hard", "experiment=star_tiny"],
    "experiment=other,star_t": ["experiment=other,star_tiny"],
    "job_type=tr": ["job_type=train"],
    "job_type=c": ["job_type=compare"],
    "~lo": ["~logger"],
    "trainer.ma": ["trainer.max_steps="],
    "--ver": ["--version"],
    "nothing": [],
    "nothing=": [],
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_completed(word: str) -> None:
    assert cli.complete(word) == WORDS[word]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    text = cli.answer(["--completion", shell])
    assert text is not None
    assert "xlm --complete" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", "/dev/stdin"], input=text, text=True, check=True)


def test_another_shell_is_refused() -> None:
    with pytest.raises(XLMError, match=r"no such shell\. Known: bash, zsh, fish"):
        cli.answer(["--completion", "tcsh"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_jobs(tmp_path: Path) -> None:
    """Bash itself: the part before "=" is not repeated."""
    asks = 'eval "$(xlm --completion bash)"; COMP_LINE="xlm job_type=p"; COMP_POINT=${#COMP_LINE}; _xlm; '
    command = ["bash", "-c", asks + 'echo "${COMPREPLY[@]}"']
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, env=path)
    assert "prepare_data" in done.stdout.split()
    assert "job_type" not in done.stdout
