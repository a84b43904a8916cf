"""Folders to share: what is written, what is read, what is refused; the protocol is in hub_protocol.py."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save

from xlm.core.command.compose import check
from xlm.core.config.errors import XLMError
from xlm.core.hub import source
from xlm.core.hub.repository import HubModel, explained
from xlm.core.saving.folder import put_weights, read_folder

from .conftest import Compose, Run
from .runs import make_run, repeatable, weights

HERE = Path(__file__).parent


def test_the_protocol(tmp_path: Path) -> None:
    """All tests of hub_protocol.py, in a process whose client talks to a server of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist",
         "-W", "ignore:Use 'content=:DeprecationWarning",  # of the client's own code
         str(HERE / "hub_protocol.py")],
        check=False, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


# ---- what is written ----------------------------------------------------------------------------------


@pytest.fixture
def trained(compose_toy: Compose, tmp_path: Path) -> Path:
    run = make_run(compose_toy, tmp_path / "runs", averaged=True)
    (run / "metrics.json").write_text('{"test/prediction/exact_match": 0.25}')
    return run


def exported(run: Path, job: str) -> Path:
    return max(run.glob(f"{job}/*/model"), key=lambda folder: folder.stat().st_mtime_ns)


def test_export_writes_averaged_or_raw_weights(trained: Path, run_toy: Run) -> None:
    run_toy("job_type=export")
    run_toy("job_type=export", "weights=raw")
    folders = sorted(trained.glob("export/*/model"))
    keys = ("state_dict", "current_model_state")
    for folder, kind, key in zip(folders, ("ema", "raw"), keys, strict=True):
        assert torch.equal(load_file(folder / "model.safetensors")["bias"], weights(trained, key))
        about = json.loads((folder / "config.json").read_text())
        assert about["xlm"]["weights"] == kind
        assert (about["vocab_size"], about["dropout"]) == (6, 0.0)
        assert about["xlm"]["class"] == "toy_family.ToyModel"
        assert about["xlm"]["step"] == 1
    card = (folders[0] / "README.md").read_text()
    assert "| weights | moving average |" in card
    assert "| optimizer steps | 1, 20 planned |" in card
    assert "exact_match | 0.25 |" in (folders[0] / "README.md").read_text()


def test_a_dry_run_needs_no_network_and_no_token(
    trained: Path, run_toy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run_toy("job_type=push_to_hub", "hub.dry_run=true")
    folder = exported(trained, "push_to_hub")
    printed = capsys.readouterr().out
    assert "nothing was pushed" in printed
    assert "ToyTokenizer has no save_pretrained" in printed
    config = yaml.safe_load((folder / "xlm_config.yaml").read_text())
    assert config["model"]["_target_"] == "toy_family.ToyModel"
    assert not {"job_name", "output_dir", "ckpt_path", "hub", "logger"} & set(config)
    assert "cache_dir" not in config["datamodule"]


def test_an_exported_folder_is_a_checkpoint(trained: Path, run_toy: Run) -> None:
    expected = repeatable(run_toy("job_type=eval"))
    run_toy("job_type=export")
    folder = exported(trained, "export")
    assert repeatable(run_toy("job_type=eval", "job_name=other", f"ckpt_path={folder}")) == expected
    run_toy("job_type=export", "job_name=other", f"ckpt_path={folder}")
    again = exported(trained.with_name("other"), "export")
    assert json.loads((again / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    with pytest.raises(XLMError, match="holds the weights ema, not raw"):
        run_toy("job_type=eval", "job_name=other", f"ckpt_path={folder}", "weights=raw")


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
def test_a_sharded_checkpoint_is_consolidated(trained: Path, run_toy: Run, tmp_path: Path) -> None:
    shards = tmp_path / "sharded.ckpt"
    state = {"state_dict": {"model.bias": weights(trained)}, "optimizer_0": {"step": torch.ones(1)}}
    save(state, checkpoint_id=shards, no_dist=True)
    torch.save({"global_step": 1}, shards / "meta.pt")
    run_toy("job_type=export", f"ckpt_path={shards}")
    bias = load_file(exported(trained, "export") / "model.safetensors")["bias"]
    assert torch.equal(bias, weights(trained))
    assert "1, 20 planned" in (exported(trained, "export") / "README.md").read_text()


# ---- what is read -------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(3, 2)
        self.tied = nn.Linear(2, 3, bias=False)
        self.tied.weight = self.first.weight


def state() -> dict[str, Tensor]:
    return {
        name: torch.full_like(value, index)
        for index, (name, value) in enumerate(Network().state_dict().items())
        if name != "tied.weight"
    }


def test_weights_and_their_other_names_are_put_in() -> None:
    network = Network()
    put_weights(network, state(), "x")
    assert torch.equal(network.first.weight, state()["first.weight"])
    assert network.tied.weight is network.first.weight


def test_everything_that_does_not_fit_is_named_and_nothing_is_changed() -> None:
    network, wrong = Network(), state()
    wrong["second.weight"] = torch.zeros(2, 4)
    wrong["extra"] = torch.zeros(1)
    del wrong["first.bias"], wrong["second.bias"]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(XLMError) as error:
        put_weights(network, wrong, "hf://a/b")
    lines = str(error.value).splitlines()
    assert "hf://a/b" in lines[0]
    assert sorted(lines[1:]) == [
        "  missing: first.bias",
        "  missing: second.bias",
        "  second.weight: shape (2, 4), the network has (2, 3)",
        "  unexpected: extra",
    ]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def index(names: dict[str, str] | Any) -> str:
    return json.dumps({"metadata": {}, "weight_map": names})


def test_parts_are_read_together(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": torch.ones(1)}, tmp_path / first)
    save_file({"b": torch.zeros(1)}, tmp_path / second)
    (tmp_path / "model.safetensors.index.json").write_text(index({"a": first, "b": second}))
    assert set(read_folder(tmp_path, "x")) == {"a", "b"}
    (tmp_path / second).unlink()
    with pytest.raises(XLMError, match=f"x lacks the file {second}"):
        read_folder(tmp_path, "x")


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00001.safetensors",
        "/etc/passwd",
        "..\\model-00001-of-00001.safetensors",
        "parts/model-00001-of-00001.safetensors",
        "model-00001-of-00001.bin",
        "C:model-00001-of-00001.safetensors",
        "https://evil.example/model-00001-of-00001.safetensors",
        "",
    ],
)
def test_an_index_names_parts_in_its_folder_only(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(index({"a": name}))
    with pytest.raises(XLMError, match="the parts of a model are files") as error:
        read_folder(folder, "x")
    assert repr(name) in str(error.value)


DEEP = '{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize("text", ["{", "[]", DEEP])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(XLMError, match=r"config\.json (cannot be read as JSON|holds a list)") as error:
        source.read(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', DEEP, '{"weight_map": 1e999}'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(XLMError, match=r"is not an index of weights|cannot be read as JSON") as error:
        read_folder(tmp_path, "x")
    assert len(str(error.value).splitlines()) == 1


def test_the_recorded_config_of_a_foreign_run_is_refused(trained: Path, run_toy: Run, tmp_path: Path) -> None:
    file = trained / "config.yaml"
    recorded = yaml.safe_load(file.read_text())
    trace = tmp_path / "trace"
    touch = {
        "_target_": "pathlib.Path.touch",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [str(trace)]}],
    }
    create = "${oc.create:" + json.dumps(touch).replace('"', "") + "}"
    hostile: tuple[dict[str, Any], ...] = (
        {"model": {**recorded["model"], "dropout": touch}},
        {"model": {**recorded["model"], "dropout": create}},
        {"model": {**recorded["model"], "dropout": "${x}"}, "x": touch},
        {"model": {**recorded["model"], "dropout": "${oc.select:x,0}"}, "x": touch},
        {"task": {**recorded["task"], "tokenizer": touch}},
        {"task": {**recorded["task"], "tokenizer": {**recorded["task"]["tokenizer"], "x": "${task.source}"},
                  "source": {"_target_": "datasets.load_dataset", "path": "pandas", "data_files": "x.pkl"}}},
        {"model": {**recorded["model"], "dropout": "${x}"}, "x": "${model.dropout}"},
    )  # fmt: skip
    for change in hostile:
        file.write_text(yaml.safe_dump({**recorded, **change}))
        with pytest.raises(XLMError, match=r"config\.yaml is rejected: .*trust_remote_code=true|rejected:\n"):
            run_toy("job_type=export")
    assert not trace.exists()
    file.write_text(yaml.safe_dump({**recorded, **hostile[0]}))
    with pytest.raises(XLMError, match="could not make"):  # dropout is no number then
        run_toy("job_type=export", "trust_remote_code=true")
    assert trace.exists()
    file.write_text(yaml.safe_dump({**recorded, "callbacks": {"x": touch}, "output_dir": "/elsewhere"}))
    run_toy("job_type=export")


class Touches:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    file, trace = tmp_path / "model.safetensors", tmp_path / "trace"
    save_file(state(), file)
    whole = file.read_bytes()
    pickled = pickle.dumps(Touches(trace))
    for content in (whole[:-1], whole[:50], whole[:4], b"", pickled, b"\xff" * 100):
        file.write_bytes(content)
        with pytest.raises(XLMError, match=r"model\.safetensors of x is damaged or not a safetensors file"):
            read_folder(tmp_path, "x")
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(XLMError, match="pickles can run code"):
        read_folder(tmp_path, "x")
    assert not trace.exists()


# ---- names and settings -------------------------------------------------------------------------------


def test_names_of_models() -> None:
    assert HubModel.parse("runs/x.ckpt") is None
    assert HubModel.parse("hf://a/b") == HubModel("a/b")
    assert HubModel.parse("hf://a/b.c-d@refs/pr/1") == HubModel("a/b.c-d", "refs/pr/1")
    for text, message in {
        "hf://b": "it needs an owner, USER/b",
        "hf://a/b/c": "is not a name of a repository",
        "hf://": "is not a name of a repository",
        "hf://a/../b": "is not a name of a repository",
        "hf://a/b--c": "is not a name of a repository",
        "hf://a/b@": "a branch, tag or commit must follow",
    }.items():
        with pytest.raises(XLMError, match=message):
            source.read(text)


def test_offline_is_said() -> None:
    with pytest.raises(
        XLMError, match=r"hf://somebody/nothing: (HF_HUB_OFFLINE is set|it is not in the cache)"
    ):
        source.read("hf://somebody/nothing")


def test_a_lost_connection_ends_in_one_line() -> None:
    with pytest.raises(XLMError) as error, explained("cannot push"):
        raise ConnectionResetError("reset\nby peer")
    assert str(error.value) == "cannot push: the connection failed (ConnectionResetError: reset by peer)"
    with pytest.raises(ZeroDivisionError), explained("cannot push"):
        _ = 1 / 0


def test_wrong_settings_of_a_push(compose_toy: Compose) -> None:
    def begin(*overrides: str) -> None:
        check(compose_toy("job_type=push_to_hub", *overrides))

    with pytest.raises(XLMError, match=r"^hub\.repo_id: missing. Set it: \+hub\.repo_id=USER/NAME"):
        begin()
    with pytest.raises(XLMError, match=r"set hub\.create_pr or hub\.revision, not both"):
        begin("+hub.repo_id=a/b", "hub.create_pr=true", "hub.revision=dev")
    for name in ("+hub.repo_id=a/b", "hub.repo_id=a/b"):
        _, settings = check(compose_toy("job_type=push_to_hub", name))
        assert settings.hub.repo_id == "a/b"


def test_a_push_to_no_valid_name_ends_before_work(run_toy: Run, tmp_path: Path) -> None:
    for name in ("toy", "a/b/c", "a/b..c"):
        with pytest.raises(XLMError, match="is not a name of a repository"):
            run_toy("job_type=push_to_hub", f"hub.repo_id={name}")
    assert not (tmp_path / "runs").exists()
