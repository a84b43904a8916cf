"""Secrets of the environment and of the command line stay out of every file of a run, and off the console."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from xlm.core.command import cli
from xlm.core.config.secrets import (
    MASK,
    hide,
    hide_file,
    hide_text,
    is_credential,
    is_secret_key,
    known,
)

from .conftest import Compose, Run
from .runs import make_run

SECRET = "hf_abcdefghijklmnop"
CREDENTIALS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "PGPASSWORD", "MYSQL_PWD",
    "OPENAI_KEY", "OPENAI_API_KEY", "SSH_PRIVATE_KEY", "GITHUB_PAT", "GITHUB_TOKEN", "MY_AUTH", "HF_TOKEN",
    "WANDB_API_KEY", "AZURE_CLIENT_SECRET", "MYSECRET", "GOOGLE_APPLICATION_CREDENTIALS", "SENTRY_DSN",
    "KEY", "apikey", "HTTP_AUTHORIZATION", "GPG_PASSPHRASE", "CI_JOB_TOKEN_OLD",
)  # fmt: skip
NO_CREDENTIALS = (
    "PATH", "HOME", "PWD", "OLDPWD", "LANG", "TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "KEYBOARD",
    "AUTHOR", "PYTHONPATH", "XLM_CACHE", "MONKEYS", "COMPATIBLE",
)  # fmt: skip
SECRET_KEYS = (
    "token", "hf_token", "access_key", "access_key_id", "secret_key", "secretKey", "secret_access_key",
    "private_key", "authorization", "Authorization", "X-Api-Key", "api_key", "apikey", "password",
    "db_password", "passphrase", "auth", "client_secret", "credentials", "cookie", "bearer", "account_key",
    "github_pat", "pwd", "api_keys",
)  # fmt: skip
USUAL_KEYS = (
    "tokenizer", "max_tokens", "num_tokens", "bos_token", "mask_token", "pad_token", "special_tokens",
    "key", "keys", "sort_key", "keep_apart", "d_model", "author", "path", "compat", "token_ids",
    "max_new_tokens", "monitor", "token_dropout", "secretary", "decoder_start_token",
)  # fmt: skip


def test_names_of_secrets() -> None:
    assert [name for name in CREDENTIALS if not is_credential(name)] == []
    assert [name for name in NO_CREDENTIALS if is_credential(name)] == []
    assert [key for key in SECRET_KEYS if not is_secret_key(key)] == []
    assert [key for key in USUAL_KEYS if is_secret_key(key)] == []


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line, to be filled; the environment has no credentials."""
    for name in filter(is_credential, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["xlm"])
    return sys.argv


def test_what_is_hidden(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PGPASSWORD", "12345678")
    monkeypatch.setenv("MY_AUTH", "short")
    monkeypatch.setenv("OTHER_AUTH", "tiny")
    config = {
        "hub": {
            "token": "literal",
            "api_key": "${oc.env:KEY}",
            "tokenizer": "gpt2",
            "secret": "${oc.env:KEY,abc}",
        },
        "urls": [f"https://user:{SECRET}@host", "postgres://me:other@host/x", "hf://user/name@main"],
        "numbers": [12345678, 12345678.0, 1234567, True, None],
        "texts": ["short", "shortest", "tiny", f"a {SECRET} b {SECRET}"],
        "headers": {
            "Authorization": ["Bearer x", 7],
            "auth": {"_target_": "a.b", "user": "x", "on": True, "y": None},
        },
        "_target_": f"package.{SECRET}",
        "max_tokens": 5,
    }
    assert hide(config) == {
        "hub": {"token": MASK, "api_key": "${oc.env:KEY}", "tokenizer": "gpt2", "secret": MASK},
        "urls": [f"https://user:{MASK}@host", f"postgres://me:{MASK}@host/x", "hf://user/name@main"],
        "numbers": [MASK, 12345678.0, 1234567, True, None],
        "texts": [MASK, "shortest", "tiny", f"a {MASK} b {MASK}"],
        "headers": {
            "Authorization": [MASK, MASK],
            "auth": {"_target_": "a.b", "user": MASK, "on": True, "y": None},
        },
        "_target_": f"package.{SECRET}",
        "max_tokens": 5,
    }


def test_the_longer_secret_is_hidden_first(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefghijkl")
    assert hide(["xabcdefghijklx", "xabcdefghx"]) == [f"x{MASK}x", f"x{MASK}x"]


def test_a_file_that_is_there_is_no_secret(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    assert hide(f"{tmp_path}/x") == f"{tmp_path}/x"
    monkeypatch.setenv("SSH_KEY", str(tmp_path / "nothing"))
    assert hide(f"{tmp_path}/nothing") == MASK
    monkeypatch.setenv("SSH_KEY", "-----BEGIN KEY-----\nabc\n")
    assert hide("-----BEGIN KEY-----\nabc\n") == MASK


def test_secrets_of_the_command_line(arguments: list[str]) -> None:
    arguments += [
        "+callbacks.note.access_key=AAAAAAAA", "+x.authorization='Bearer BBBBBBBB'",
        "+y={secret_key: CCCCCCCC, b: 1}",
        '+z={"password": "DDDD, DDDD"}', "+w.token=EEEEEEEE,FFFFFFFF", "+v.token=${oc.env:GGGGGGGG}",
        "task.name=HHHHHHHH", "model.bos_token=IIIIIIII",
    ]  # fmt: skip
    found = known()
    for letter in "ABCEF":
        assert any(letter * 8 in value for value in found), letter
    assert "DDDD, DDDD" in found
    assert not [value for value in found if "GGGG" in value or "HHHH" in value or "IIII" in value]


def test_hidden_in_files(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    file = tmp_path / "overrides.yaml"
    hide_file(file)
    assert not file.exists()
    file.write_text(f"# mine\n- +a.b={SECRET}\n- c=1\n")
    hide_file(file)
    assert yaml.safe_load(file.read_text()) == [f"+a.b={MASK}", "c=1"]
    file.write_text("# mine\n- c=1\n")
    hide_file(file)
    assert file.read_text() == "# mine\n- c=1\n"


def test_no_file_of_a_run_holds_a_secret(
    run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {name: f"{number}-value-of-a-secret" for number, name in enumerate(CREDENTIALS)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    overrides = (
        "job_type=train",
        "debug=fast",
        "+callbacks.note={_target_: toy_accidents.FailAt, batch: 999}",
        "+callbacks.note.token=${oc.env:HF_TOKEN}",
        "+callbacks.note.access_key=literal-of-a-secret",
        f"+callbacks.note.note=[{','.join(f'a-{value}' for value in values.values())}]",
    )
    run_toy(*overrides)
    run_toy(*overrides)  # the record compares equal to itself
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert files
    assert not [
        path for path, content in files.items() if b"of-a-secret" in content or SECRET.encode() in content
    ]
    assert "${oc.env:HF_TOKEN}" in (tmp_path / "runs/toy/config.yaml").read_text()


def test_no_file_that_is_shared_holds_a_secret(
    run_toy: Run, compose_toy: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(compose_toy, tmp_path / "runs", averaged=True)
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    recorded["task"]["source"]["note"] = f"a {SECRET}"
    recorded["task"]["source"]["secret_key"] = "x-value-of-a-secret"
    (run / "config.yaml").write_text(yaml.safe_dump(recorded))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for job in ("job_type=export", "job_type=push_to_hub"):
        run_toy(job, "hub.dry_run=true")
        (folder,) = run.glob(f"{job.partition('=')[2]}/*/model")
        texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"}
        assert {"README.md", "config.json", "xlm_config.yaml"} <= texts.keys()
        assert not [name for name, text in texts.items() if SECRET in text or "of-a-secret" in text]
        source = yaml.safe_load(texts["xlm_config.yaml"])["task"]["source"]
        assert (source["note"], source["secret_key"]) == (f"a {MASK}", MASK)


def run_in_a_process(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "HF_TOKEN": SECRET, "HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "xlm.core", *arguments],
        check=False, cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_what_hydra_prints_and_writes_holds_no_secret(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntask: {name: mine}\n")
    arguments = (
        "-m", "--config-dir", str(tmp_path), "job_type=train", "job_name=x", "experiment=mine",
        f"+hub.note={SECRET}", "+hub.access_key=literal-of-a-secret", "hydra.output_subdir=.hydra",
    )  # fmt: skip
    printed = run_in_a_process(tmp_path, *arguments)
    assert f"+hub.note={MASK}" in printed  # in Hydra's line about the job
    written = {path: path.read_text() for path in tmp_path.rglob("*.yaml")}
    assert {"multirun.yaml", "overrides.yaml", "hydra.yaml", "config.yaml"} <= {path.name for path in written}
    for text in (printed, *written.values()):
        assert SECRET not in text
        assert "of-a-secret" not in text


def test_messages_hold_no_secret(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    arguments += [f"job_type={SECRET}", "job_name=x"]
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    print(ended.value.code, file=sys.stderr)
    sys.stdout.writelines([SECRET, "\n", "fine"])
    captured = capsys.readouterr()
    assert f"job_type={MASK}: no such job" in captured.err
    assert captured.out == f"{MASK}\nfine"
    assert hide_text("nothing", known()) == "nothing"
