"""Damage is noticed before anything is used: checkpoints, folders to share, prepared data."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from xlm.core.config.errors import XLMError
from xlm.core.data import PreparedTask
from xlm.core.saving.checkpoints import AtomicCheckpointIO
from xlm.core.saving.folder import read_folder
from xlm.core.saving.weights import read_weights

from . import text_task
from .conftest import Compose, Run
from .runs import RESUMABLE, make_run


def flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


# ---- checkpoints ----------------------------------------------------------------------------------------


def test_a_flipped_bit_of_a_checkpoint_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """Some bits mean nothing: padding, times. All others are found, wherever they are."""
    file = tmp_path / "last.ckpt"
    weight = torch.arange(1000.0)
    AtomicCheckpointIO().save_checkpoint({**RESUMABLE, "state_dict": {"model.weight": weight}}, file)
    whole = file.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(80):
        file.write_bytes(whole)
        flip(file, chance)
        try:
            state = read_weights(file)
        except XLMError:
            refused += 1
        else:
            assert state.keys() == {"weight"}
            assert torch.equal(state["weight"], weight)
    assert refused > 60


@pytest.mark.parametrize("job", ["eval", "generate", "export", "push_to_hub", "train"])
def test_every_job_compares_the_checksums(
    job: str, compose_toy: Compose, run_toy: Run, tmp_path: Path
) -> None:
    run = make_run(compose_toy, tmp_path / "runs")
    file = run / "checkpoints" / "best-00000001.ckpt"
    elsewhere = tmp_path / "file.ckpt"
    bias = torch.load(file, weights_only=True)["state_dict"]["model.bias"].numpy().tobytes()
    content = file.read_bytes()
    elsewhere.write_bytes(content.replace(bias, bias[:-1] + bytes([bias[-1] ^ 0x40])))
    more = ("hub.repo_id=somebody/toy", "hub.dry_run=true") if job == "push_to_hub" else ()
    with pytest.raises(XLMError, match=r"file\.ckpt is damaged: the checksum of its record .* is wrong"):
        run_toy(f"job_type={job}", "job_name=other", f"ckpt_path={elsewhere}", *more)


def test_files_without_checksums_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save(
        {"state_dict": {"model.weight": torch.ones(2)}},
        tmp_path / "old.ckpt",
        _use_new_zipfile_serialization=False,
    )
    AtomicCheckpointIO().save_checkpoint(dict(RESUMABLE), tmp_path / "new.ckpt")
    for name, says in (("model.safetensors", True), ("old.ckpt", True), ("new.ckpt", False)):
        read_weights(tmp_path / name)
        assert ("has no checksums" in capsys.readouterr().out) == says, name
    (tmp_path / "config.json").write_text("{}")
    read_folder(tmp_path, "hf://somebody/toy")
    assert "model.safetensors of hf://somebody/toy has no checksums" in capsys.readouterr().out


def test_other_bytes_of_the_same_size_in_a_folder_are_found(
    compose_toy: Compose, run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(compose_toy, tmp_path / "runs")
    run_toy("job_type=export")
    [folder] = run.glob("export/*/model")
    run_toy("job_type=eval", "job_name=other", f"ckpt_path={folder}")
    assert "has no checksums" not in capsys.readouterr().out
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0x40]))
    with pytest.raises(XLMError, match=r"is damaged: the checksum of model\.safetensors is wrong"):
        run_toy("job_type=eval", "job_name=other", f"ckpt_path={folder}")
    weights.write_bytes(whole[:-1])
    with pytest.raises(XLMError, match=r"is damaged: model\.safetensors has \d+ bytes"):
        run_toy("job_type=eval", "job_name=other", f"ckpt_path={folder}")


# ---- prepared data --------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> PreparedTask:
    return text_task.prepared(tmp_path / "cache")


def assert_prepared_anew(cached: PreparedTask, reason: str) -> None:
    again = text_task.prepared(cached.folder.parents[1])
    assert again.damage is not None
    assert reason in again.damage
    assert not again.was_cached
    for split in ("train", "val"):
        assert again.load(split)["target_ids"][:] == text_task.documents(split)
    assert text_task.prepared(cached.folder.parents[1]).damage is None


def test_a_flipped_bit_of_prepared_data_is_found(cached: PreparedTask) -> None:
    """Of any file: 60 bits, one after the other in the order of the files."""
    chance = random.Random(1)
    files = sorted(path for path in cached.folder.rglob("*") if path.is_file())
    assert len(files) == 7
    for number in range(60):
        file = files[number % len(files)]
        whole = file.read_bytes()
        flip(file, chance)
        found = text_task.look(cached.folder)
        assert found is not None
        assert file.name in found or file.name == "checksums.json"
        file.write_bytes(whole)
    assert text_task.look(cached.folder) is None


def spoil(change: Callable[[Path], object], name: str) -> Callable[[Path], object]:
    return lambda folder: change(folder / name)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def become_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def exchange(folder: Path) -> None:
    one, other = folder / "train" / "rows.arrow", folder / "val" / "rows.arrow"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def become_another(folder: Path) -> None:
    """The data of another setting, whole in themselves."""
    other = text_task.prepared(folder.parents[1], row_filter=text_task.even_length).folder
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "rows missing": (spoil(Path.unlink, "train/rows.arrow"), "train/rows.arrow is missing"),
    "rows cut": (spoil(cut, "train/rows.arrow"), "train/rows.arrow has"),
    "rows empty": (spoil(empty, "val/rows.arrow"), "val/rows.arrow has 0 bytes"),
    "rows exchanged": (exchange, "rows.arrow"),
    "rows a folder": (spoil(become_folder, "train/rows.arrow"), "train/rows.arrow is missing"),
    "ends missing": (spoil(Path.unlink, "train/ends.npy"), "train/ends.npy is missing"),
    "ends cut": (spoil(cut, "val/ends.npy"), "val/ends.npy has"),
    "card missing": (spoil(Path.unlink, "val/card.json"), "val/card.json is missing"),
    "card another": (lambda folder: (folder / "val/card.json").write_text("[]"), "val/card.json has 2 bytes"),
    "split missing": (spoil(shutil.rmtree, "val"), "val/card.json is missing"),
    "split a file": (spoil(become_file, "val"), "val/card.json is missing"),
    "record missing": (spoil(Path.unlink, "checksums.json"), "it has no checksums.json"),
    "record cut": (spoil(cut, "checksums.json"), "its checksums.json is damaged"),
    "record a list": (
        lambda folder: (folder / "checksums.json").write_text("[]"),
        "its checksums.json is damaged",
    ),
    "record of nothing": (
        lambda folder: (folder / "checksums.json").write_text(json.dumps({"key": folder.name, "files": {}})),
        "lacks train/card.json",
    ),
    "no files": (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "it has no checksums.json"),
    "a file": (become_file, "it has no checksums.json"),
    "of another setting": (become_another, "it holds the data of"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_prepared_data_that_are_not_as_they_were_written_are_made_anew(
    name: str, cached: PreparedTask
) -> None:
    damage, reason = DAMAGES[name]
    damage(cached.folder)
    assert_prepared_anew(cached, reason)


def test_a_foreign_file_beside_prepared_rows_is_not_read(cached: PreparedTask) -> None:
    shutil.copy(cached.folder / "val" / "rows.arrow", cached.folder / "train" / "rows-foreign.arrow")
    (cached.folder / "notes.txt").write_text("precious")
    again = text_task.prepared(cached.folder.parents[1])
    assert again.was_cached
    assert again.load("train")["target_ids"][:] == text_task.documents("train")
    assert (cached.folder / "notes.txt").exists()


def test_only_what_is_used_is_read(cached: PreparedTask) -> None:
    rows = cached.folder / "train" / "rows.arrow"
    flip(rows, random.Random(0))
    assert text_task.look(cached.folder, used=("val",)) is None
    cut(rows)
    assert "train/rows.arrow has" in (text_task.look(cached.folder, used=("val",)) or "")


def test_damaged_data_that_cannot_be_prepared_anew_are_named_and_kept(cached: PreparedTask) -> None:
    def offline(split: str) -> list[dict[str, object]]:
        raise ConnectionError("no network")

    offline.__module__, offline.__qualname__ = "datasets.load", "load_dataset"
    first = text_task.prepared(cached.folder.parents[1], source=offline_source(offline, cached))
    file = first.folder / "val" / "ends.npy"
    cut(file)
    with pytest.raises(
        XLMError, match=r"(?s)are damaged \(val/ends\.npy.*cannot be prepared again.*no network"
    ):
        text_task.prepared(cached.folder.parents[1], source=offline)
    assert file.exists()


def offline_source(offline: Callable[..., object], cached: PreparedTask) -> Callable[..., object]:
    """The same source while there is a network."""

    def online(split: str) -> object:
        return text_task.text_rows(split)

    online.__module__, online.__qualname__ = offline.__module__, offline.__qualname__
    return online


def test_the_jobs_say_it(run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy("job_type=prepare_data")
    [rows] = tmp_path.glob("cache/toy/*/val/rows.arrow")
    flip(rows, random.Random(0))
    capsys.readouterr()
    run_toy("job_type=prepare_data")
    out = " ".join(capsys.readouterr().out.split())
    assert "was damaged and is prepared again: the checksum of val/rows.arrow is wrong" in out
