"""The command line: quick answers, mistakes that end in one message, completion of words."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from xlm.core.command import cli
from xlm.core.command.arguments import check_choice
from xlm.core.command.compose import CORE_CONFIGS, register_search_path
from xlm.core.command.discovery import ConfigPackage
from xlm.core.config.console import make_console
from xlm.core.config.errors import XLMError

HEAVY = {"torch", "lightning", "transformers", "datasets", "torchmetrics"}
PROBE = """
import atexit, sys
def tell():
    sys.stderr.write("\\nLOADED " + " ".join(sorted(name for name in sys.modules if "." not in name)))
atexit.register(tell)
sys.argv = ["xlm", *sys.argv[1:]]
from xlm.core.command.cli import main
main()
"""


def xlm(*arguments: str, cwd: Path) -> tuple[int, str, str, set[str]]:
    """Exit code, output, errors and the top-level modules that were imported."""
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        check=False,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    errors, _, loaded = done.stderr.rpartition("\nLOADED ")
    return done.returncode, done.stdout, errors, set(loaded.split())


@pytest.mark.parametrize("arguments", [("--help",), (), ("--version",)])
def test_quick_answers_import_neither_torch_nor_hydra(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, output, errors, loaded = xlm(*arguments, cwd=tmp_path)
    assert code == 0
    assert not errors
    assert "xlm" in output
    assert not loaded & (HEAVY | {"hydra", "omegaconf", "pydantic"})


TRAIN = ("job_type=train", "job_name=x")
TOY = ("--config-dir", str(Path(__file__).parent / "toy_configs"), "experiment=toy")
MISTAKES = {
    "unknown job": (("job_type=trane", "job_name=x"), "job_type=trane: no such job. Did you mean train?"),
    "unknown experiment": ((*TRAIN, "experiment=nope"), "no such experiment"),
    "unknown recipe": ((*TRAIN, "recipe=nope"), "no such recipe"),
    "no option": ((*TRAIN, "model=null"), "To select none: '~model'"),
    "unknown key": ((*TRAIN, "optimizer.learning=1"), "optimizer.learning"),
    "no job name": (("job_type=train",), "job_name: missing. Name the run"),
    "no job type": (("job_name=x",), "job_type: missing. Choose one of prepare_data, train"),
    "wrong type": ((*TRAIN, "trainer.max_steps=many"), "trainer.max_steps: got 'many'"),
    "wrong value": ((*TRAIN, "trainer.precision=fp8"), "'bf16-mixed'"),
    "negative": ((*TRAIN, "trainer.accumulate_grad_batches=0"), "greater than or equal to 1"),
    "no task": (TRAIN, "task: missing. Choose an experiment"),
    "bad name": (("job_type=train", "job_name=a/b"), "job_name: got 'a/b'"),
    "unknown option": ((*TRAIN, "optimizer=sgdx"), "adamw"),
    "owned by the harness": ((*TRAIN, "+trainer.max_epochs=3"), "max_epochs: set by the harness"),
    "broken reference": ((*TRAIN, "+vocab.a=${nothing}"), "nothing"),
    "job without key": (("train", "job_name=x"), "nor an option. Did you mean job_type=train"),
    "bad override": ((*TRAIN, "foo"), "foo: neither KEY=VALUE nor an option"),
    "near key": ((*TRAIN, "trainer.max_step=3"), "no max_step in trainer. Did you mean max_steps"),
    "key of elsewhere": ((*TRAIN, "trainer.weight_decay=3"), "Did you mean optimizer.weight_decay?"),
    "unquoted": ((*TRAIN, "ckpt_path=epoch=1-step=4.ckpt"), """Hydra: 'ckpt_path="epoch=1-step=4.ckpt"'"""),
    "home": ((*TRAIN, "output_dir=~/x"), """Hydra: 'output_dir="~/x"'"""),
    "several values": (("job_type=train", "job_name=a,b"), "A run for each: -m job_name=a,b"),
    "nothing to delete": ((*TRAIN, "~seed_nope"), "~seed_nope: there is no seed_nope, or its value is null"),
    "null deleted": ((*TRAIN, "~source"), "set it first: source=0 '~source'"),
    "no checkpoint": (("job_type=eval", "job_name=x", *TOY), "The run runs/x has no checkpoint"),
    "no such checkpoint": ((*TRAIN, *TOY, "ckpt_path=nope"), "ckpt_path: there is no file nope"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_a_message_without_torch(name: str, tmp_path: Path) -> None:
    arguments, message = MISTAKES[name]
    code, output, errors, loaded = xlm(*arguments, cwd=tmp_path)
    assert code != 0
    assert message in errors
    assert "Traceback" not in output + errors
    assert not loaded & HEAVY
    assert list(tmp_path.iterdir()) == [], "a refused job leaves nothing behind"


def test_an_interruption_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "answer", interrupt)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted (HYDRA_FULL_ERROR=1 shows where)\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(KeyboardInterrupt):
        cli.main()


def test_composed_config_is_shown(tmp_path: Path) -> None:
    code, output, _, loaded = xlm("job_type=train", "--cfg", "job", cwd=tmp_path)
    assert code == 0
    assert "_target_: xlm.modules.FusedAdamW" in output
    assert not loaded & (HEAVY | {"submitit"})


def test_a_sweep_over_a_cluster_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    nodes = ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=4", "hydra.launcher.timeout_min=60"]
    register_search_path()
    with initialize_config_dir(str(CORE_CONFIGS), version_base="1.3"):
        config = compose("config", ["hydra/launcher=submitit_slurm", *nodes], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_ == "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    assert (launcher.nodes, launcher.tasks_per_node, launcher.timeout_min) == (2, 4, 60)


def test_help_names_jobs_groups_and_packages() -> None:
    text = cli.help_text()
    for word in (
        "prepare_data",
        "generate",
        "recipe",
        "family",
        "debug",
        "overfit",
        "adamw",
        "trainer.precision",
        "--cfg job",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
    assert "_base" not in text


def test_a_reader_that_has_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        cli.show(cli.help_text())


def test_a_typo_is_answered_with_the_closest_names() -> None:
    with pytest.raises(XLMError, match=r"Did you mean star_easy_ilm\?.*Known: lm1b_mdlm, star_easy_ilm"):
        check_choice("experiment", "star_esy_ilm", ["lm1b_mdlm", "star_easy_ilm"], "experiment")


def test_an_empty_cache_folder_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLM_CACHE", "")
    cli.settle_environment()
    assert "XLM_CACHE" not in os.environ
    monkeypatch.setenv("XLM_CACHE", "/somewhere")
    cli.settle_environment()
    assert os.environ["XLM_CACHE"] == "/somewhere"


def test_a_closed_pipe_is_an_error_that_is_reported() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        console = make_console()
        console.file = output
        with pytest.raises(BrokenPipeError):
            console.print("a line")
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


@pytest.fixture
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
    "job_type=do": ["job_type=doctor"],
    "~lo": ["~logger"],
    "trainer.ma": ["trainer.max_steps="],
    "--ver": ["--version"],
    "nothing": [],
    "nothing=": [],
}


@pytest.mark.usefixtures("two_experiments")
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
