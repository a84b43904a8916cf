"""Pushing to a Hub and loading from it, over HTTP, with huggingface_hub's client as it is.

Run by ``test_hub.py`` in a process of its own: the client reads the Hub's address when it is imported.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from xlm.core.config.errors import XLMError

from .conftest import Compose, Run
from .hub_server import READ_ONLY_TOKEN, TOKEN, Hub, serve
from .runs import make_run, repeatable, weights

HUB = serve(Hub())
os.environ["HF_ENDPOINT"] = HUB.url
NAME = "tester/toy"
REPO = f"+hub.repo_id={NAME}"


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The server, empty."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for state in (HUB.repos, HUB.blobs, HUB.requests, HUB.failures, HUB.breaks):
        state.clear()
    HUB.delay, HUB.lfs, HUB.is_away, HUB.is_a_website = 0.0, True, False, False
    return HUB


@pytest.fixture
def push(run_toy: Run, compose_toy: Compose, tmp_path: Path) -> Run:
    """Makes a run, once for each name, and pushes it."""

    def pushed(*overrides: str, name: str = "toy") -> dict[str, float]:
        if not (tmp_path / "runs" / name).exists():
            make_run(compose_toy, tmp_path / "runs", name)
        return run_toy("job_type=push_to_hub", f"job_name={name}", *overrides)

    return pushed


def sent(hub: Hub, start: str) -> int:
    return sum(request.startswith(start) for request in hub.requests)


def test_a_push_makes_the_repository_with_everything_in_one_commit(
    push: Run, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(REPO)
    repo = hub.repos[NAME]
    files = repo.files()
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "xlm_config.yaml"]
    assert repo.titles() == ["initial commit", "Push toy with XLM"]
    assert torch.equal(load(files["model.safetensors"].content)["bias"], weights(tmp_path / "runs" / "toy"))
    assert json.loads(files["config.json"].content)["vocab_size"] == 6
    assert f'"{NAME}"' not in files["xlm_config.yaml"].content.decode()
    assert str(tmp_path) not in b"".join(file.content for file in files.values()).decode("latin-1")
    assert not repo.private
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{NAME}@main: new README.md, config.json, model.safetensors, xlm_config.yaml." in printed
    assert f"Pushed: {hub.url}/{NAME}/commit/" in printed


def test_a_second_push_sends_only_what_has_changed(
    push: Run, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    push(REPO)
    hub.requests.clear()
    push(REPO)
    assert "nothing has changed" in capsys.readouterr().out
    assert len(hub.repos[NAME].commits) == 2
    assert not [request for request in hub.requests if not request.startswith("GET ")]
    hub.repos[NAME].files()["README.md"].content = b"written by hand"
    push(REPO, "hub.commit_message=Again")
    printed = " ".join(capsys.readouterr().out.split())
    assert "OVERWRITTEN README.md; unchanged config.json, model.safetensors" in printed
    assert hub.repos[NAME].titles()[-1] == "Again"
    assert b"Load and generate" in hub.repos[NAME].files()["README.md"].content
    assert not sent(hub, "PUT")


def test_parts_of_an_earlier_push_do_not_stay_beside_the_new_weights(push: Run, hub: Hub) -> None:
    old = {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"}
    hub.create(NAME, files={**old, "model.safetensors.index.json": b"{}", "notes.md": b"mine"})
    push(REPO)
    files = set(hub.repos[NAME].files())
    assert files == {"README.md", "config.json", "model.safetensors", "xlm_config.yaml", "notes.md"}


def test_branches_and_revisions(push: Run, run_toy: Run, hub: Hub) -> None:
    push(REPO)
    push(REPO, "hub.revision=dev", "hub.commit_message=Later", name="other")
    repo = hub.repos[NAME]
    assert repo.refs["main"] != repo.refs["dev"]
    expected = {name: repeatable(run_toy("job_type=eval", f"job_name={name}")) for name in ("toy", "other")}
    assert expected["toy"] != expected["other"]
    revisions = {"": "toy", "@main": "toy", f"@{repo.refs['main']}": "toy", "@dev": "other"}
    for revision, name in revisions.items():
        found = run_toy("job_type=eval", "job_name=pulled", f"ckpt_path=hf://{NAME}{revision}")
        assert repeatable(found) == expected[name]
    with pytest.raises(Exception, match="no such branch, tag or commit"):
        run_toy("job_type=eval", "job_name=pulled", f"ckpt_path=hf://{NAME}@nowhere")


def test_training_goes_on_from_a_model_of_the_hub(push: Run, run_toy: Run, tmp_path: Path) -> None:
    push(REPO)
    source = f"ckpt_path=hf://{NAME}"
    settings = (
        "job_type=train",
        "test_after_training=false",
        "optimizer.lr=0.0",
        "trainer.max_steps=2",
        "trainer.log_every_n_steps=1",
    )
    run_toy(*settings, "job_name=more", source)
    assert torch.equal(weights(tmp_path / "runs" / "more"), weights(tmp_path / "runs" / "toy"))
    run_toy(*settings, "job_name=new")
    assert not torch.equal(weights(tmp_path / "runs" / "new"), weights(tmp_path / "runs" / "toy"))
    assert run_toy("job_type=generate", "job_name=pulled", source)


def test_a_private_repository_needs_a_token(
    push: Run, run_toy: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(REPO, "hub.private=true")
    assert hub.repos[NAME].private
    monkeypatch.setenv("HF_TOKEN", READ_ONLY_TOKEN)
    run_toy("job_type=eval", "job_name=pulled", f"ckpt_path=hf://{NAME}")
    monkeypatch.delenv("HF_TOKEN")
    hub.repos["tester/hidden"] = hub.repos[NAME]
    with pytest.raises(Exception, match=r"or it is private and your token may not read it\. Log in with"):
        run_toy("job_type=eval", "job_name=pulled", "ckpt_path=hf://tester/hidden")


def test_a_missing_repository(run_toy: Run) -> None:
    with pytest.raises(Exception, match="cannot load hf://tester/none: there is no such repository"):
        run_toy("job_type=eval", "job_name=x", "ckpt_path=hf://tester/none")


def test_a_push_without_a_token_or_a_right_leaves_the_files(
    push: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Exception, match="there is no token to push with"):
        push(REPO)
    assert not hub.repos
    monkeypatch.setenv("HF_TOKEN", READ_ONLY_TOKEN)
    with pytest.raises(Exception, match="your token lacks the permission") as error:
        push(REPO)
    (folder,) = (tmp_path / "runs" / "toy" / "push_to_hub").glob("*/model")
    assert f"The files are in {folder}" in str(error.value)
    assert (folder / "model.safetensors").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(Exception, match="your token lacks the permission"):
        push("hub.repo_id=somebody/toy")


def test_an_interrupted_push_can_be_repeated(push: Run, hub: Hub) -> None:
    hub.failures = [(f"POST /api/models/{NAME}/commit", 500)]
    with pytest.raises(Exception, match="Run the same command again to push") as error:
        push(REPO)
    assert "the Hub answered with an error" in str(error.value)
    assert sent(hub, "PUT") == 1
    assert not hub.repos[NAME].files()
    push(REPO)
    assert "model.safetensors" in hub.repos[NAME].files()
    assert sent(hub, "PUT") == 1, "what was uploaded is not sent again"


def test_an_upload_that_fails_in_the_middle(push: Run, hub: Hub) -> None:
    hub.failures = [("PUT /lfs", 403)]
    with pytest.raises(Exception, match="Run the same command again to push"):
        push(REPO)
    assert not hub.repos[NAME].files(), "nothing is half pushed"
    hub.failures = [("PUT /lfs", 503)]  # the client tries again by itself
    push(REPO)
    assert "model.safetensors" in hub.repos[NAME].files()


@pytest.mark.parametrize(
    ("upload", "where"),
    [
        ("PUT /lfs", "body"),
        ("PUT /lfs", "answer"),
        (f"POST /api/models/{NAME}/commit", "body"),
        (f"POST /api/models/{NAME}/commit", "answer"),
    ],
)
def test_a_connection_lost_in_the_middle_of_a_push(
    upload: str,
    where: str,
    compose_toy: Compose,
    run_toy: Run,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(compose_toy, tmp_path / "runs", size=4_000_000)  # more than fits on the way
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pyright: ignore[reportUnknownLambdaType]  # 24 s
    hub.create(NAME)
    hub.breaks = [(upload, where)]
    with pytest.raises(XLMError) as error:
        run_toy("job_type=push_to_hub", "job_name=toy", REPO)
    (folder,) = (run / "push_to_hub").glob("*/model")
    first, second = str(error.value).splitlines()
    assert first.startswith(f"hub.repo_id: cannot push to {NAME}: the connection failed (")
    assert second == f"The files are in {folder}. Run the same command again to push."
    assert torch.equal(load((folder / "model.safetensors").read_bytes())["bias"], weights(run))

    hub.breaks, hub.is_away = [], False
    run_toy("job_type=push_to_hub", "job_name=toy", REPO)
    pushed = hub.repos[NAME].files()
    assert torch.equal(load(pushed["model.safetensors"].content)["bias"], weights(run))
    # An answer that was lost belongs to a commit that was made.
    assert len(hub.repos[NAME].titles()) == 2, "one commit"


def test_slow_answers_are_waited_for(push: Run, run_toy: Run, hub: Hub) -> None:
    hub.delay = 0.1
    push(REPO)
    run_toy("job_type=eval", "job_name=pulled", f"ckpt_path=hf://{NAME}")
    assert len(hub.requests) >= 8


def test_a_pull_request(push: Run, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.create(NAME)
    push(REPO, "hub.create_pr=true")
    assert f"Pushed: {hub.url}/{NAME}/discussions/1" in " ".join(capsys.readouterr().out.split())
    assert not hub.repos[NAME].files()
    assert "model.safetensors" in hub.repos[NAME].files("refs/pr/1")


def test_a_hub_that_takes_weights_within_the_commit(push: Run, run_toy: Run, hub: Hub) -> None:
    hub.lfs = False
    push(REPO)
    assert not hub.repos[NAME].files()["model.safetensors"].lfs
    assert not sent(hub, "PUT")
    run_toy("job_type=eval", "job_name=pulled", f"ckpt_path=hf://{NAME}")


def test_pickles_are_not_even_downloaded(run_toy: Run, hub: Hub) -> None:
    hub.create(NAME, files={"pytorch_model.bin": b"x", "model.ckpt": b"x", "config.json": b"{}"})
    with pytest.raises(Exception, match="pickles can run code"):
        run_toy("job_type=eval", "job_name=x", f"ckpt_path=hf://{NAME}")
    assert not [request for request in hub.requests if ".bin" in request or ".ckpt" in request]


def test_the_config_that_was_pushed_is_checked_and_composed(
    push: Run, compose_toy: Compose, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xlm.core.hub.pushed_config import as_experiment

    push(REPO)
    arguments = ["job_type=generate", "job_name=x", f"ckpt_path=hf://{NAME}"]
    with (
        pytest.raises(Exception, match=r"model\._target_: 'toy_family\.ToyModel' is not allowed"),
        as_experiment(arguments),
    ):
        pass
    toys = (
        "toy_rows",
        "toy_preprocess",
        "ToyTokenizer",
        "ToyExactMatch",
        "ToyModel",
        "ToyLoss",
        "ToyPredictor",
    )
    names = {f"toy_family.{name}": f"toy_family.{name}" for name in (*toys, "ToyCollator")}
    import xlm.core.hub.allow_list as allow_list

    known = allow_list.allowed_names()
    monkeypatch.setattr(allow_list, "allowed_names", lambda: {**known, **names})
    with as_experiment(arguments) as (extended, folder):
        assert folder is not None
        from hydra import compose, initialize_config_dir

        with initialize_config_dir(str(folder / "experiment"), version_base="1.3"):
            config = compose(extended[-1].partition("=")[2])
    assert config.model._target_ == "toy_family.ToyModel"
    assert config.trainer.max_steps == 20
    assert "output_dir" not in config
    hub.repos.clear()
    hub.create(NAME, files={"model.safetensors": b""})
    with pytest.raises(Exception, match=r"has no xlm_config\.yaml"), as_experiment(arguments):
        pass


def test_what_is_no_hub_is_said_in_a_line(push: Run, hub: Hub) -> None:
    hub.is_a_website = True
    with pytest.raises(XLMError, match="cannot push to tester/toy: the server is not a Hub"):
        push(REPO)


def test_a_repository_that_is_there_and_has_no_address(push: Run, hub: Hub) -> None:
    hub.failures = [("POST /api/repos/create", 409)]
    with pytest.raises(XLMError, match="cannot push to tester/toy: "):
        push(REPO)


def test_a_hub_that_never_answers_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import get_session  # only now, when the address of the Hub is set

    from xlm.core.hub import repository

    monkeypatch.setattr(repository, "SECONDS", 0.1)
    hub.delay = 1.0
    with (
        pytest.raises(XLMError, match=r"asking: the Hub did not answer within 0\.1 s"),
        repository.explained("asking"),
    ):
        get_session().get(f"{hub.url}/api/models/{NAME}", timeout=None)
