"""Files of checkpoints, and the weights in them."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save
from typing_extensions import override

from xlm.core.config.errors import XLMError
from xlm.core.hub import source
from xlm.core.saving.checkpoints import (
    FORMAT_KEY,
    AtomicCheckpointIO,
    damage,
    read,
    replace_folder,
    write_atomically,
)
from xlm.core.saving.resume import newest_valid
from xlm.core.saving.weights import read_weights

from .runs import RESUMABLE


def write(path: Path, step: int, **more: object) -> Path:
    content = {**RESUMABLE, "global_step": step, "weight": torch.arange(1000.0), **more}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def test_any_flipped_bit_and_any_missing_end_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", 1)
    assert damage(path) is None
    whole = path.read_bytes()
    start = whole.index(torch.arange(1000.0).numpy().tobytes())
    for place in (start, start + 2000, start + 3999):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "checksum" in (damage(path) or "")
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated" in (damage(path) or "")


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", 1)

    def fail(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fail)
    assert read(path)["global_step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_one_before_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path / "last.ckpt", step)
    assert read(tmp_path / "last.ckpt")["global_step"] == 3
    assert read(tmp_path / "previous.ckpt")["global_step"] == 2


def write_folder(path: Path, step: int) -> Path:
    """A checkpoint in shards, as a process leaves it."""
    part = path.with_name(".part")
    save({"state_dict": {"model.bias": torch.ones(300)}}, checkpoint_id=part, no_dist=True)
    torch.save({**RESUMABLE, "global_step": step}, part / "meta.pt")
    replace_folder(part, path)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        (".metadata", None),
        ("meta.pt", None),
        ("__0_0.distcp", None),
        ("__0_0.distcp", 999),
        ("__0_0.distcp", -1),
        (".metadata", -1),
        ("meta.pt", 100),
        ("checksums.json", 10),
    ],
)
def test_a_folder_that_is_not_as_it_was_written_is_passed_over(
    name: str, size: int | None, tmp_path: Path
) -> None:
    """A file that is not there, a shorter one, or one with a flipped bit (-1)."""
    for step in (1, 2):
        last = write_folder(tmp_path / "last.ckpt", step)
    assert damage(last) is None
    if size is None:
        (last / name).unlink()
    elif size == -1:
        content = bytearray((last / name).read_bytes())
        content[len(content) // 2] ^= 1
        (last / name).write_bytes(content)
    else:
        os.truncate(last / name, size)
    found = newest_valid(tmp_path)
    assert found.header is not None
    assert (found.header.path.name, found.header.step) == ("previous.ckpt", 1)
    assert list(found.refused) == [last]
    assert name in found.refused[last]


def test_the_newest_by_steps_not_by_the_clock(tmp_path: Path) -> None:
    write(tmp_path / "best-00000030.ckpt", 30)
    write(tmp_path / "last.ckpt", 20)
    write(tmp_path / "weights.ckpt", 99).write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "no-state.ckpt")
    os.utime(tmp_path / "best-00000030.ckpt", (0, 0))
    found = newest_valid(tmp_path)
    assert found.header is not None
    assert found.header.path.name == "best-00000030.ckpt"
    assert [path.name for path in found.refused] == ["no-state.ckpt", "weights.ckpt"]
    assert newest_valid(tmp_path / "nowhere").header is None


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", 1, **{FORMAT_KEY: 5})
    for use in (read, read_weights):
        with pytest.raises(XLMError, match=r"format version 5.*Update xlm-core"):
            use(path)
    with pytest.raises(XLMError, match="format version 5"):
        newest_valid(tmp_path)


class Malicious:
    @override
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(Path(os.environ["MALICE"])),)


def test_unknown_objects_need_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALICE", str(tmp_path / "malice"))
    path = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}, "extra": Malicious()}, path)
    for protocol in (path, tmp_path / "plain.ckpt"):
        if not protocol.exists():
            protocol.write_bytes(pickle.dumps({"state_dict": {}, "extra": Malicious()}, protocol=2))
        with pytest.raises(XLMError, match=r"allow_pickle=true|not a readable checkpoint"):
            read(protocol)
    assert not (tmp_path / "malice").exists()
    read_weights(path, allow_pickle=True)
    assert (tmp_path / "malice").exists()


def test_averaged_or_trained_weights(tmp_path: Path) -> None:
    average, trained = torch.zeros(2), torch.ones(2)
    state = {"state_dict": {"model.weight": average}}
    plain = write(tmp_path / "plain.ckpt", 1, **state)
    both = write(
        tmp_path / "both.ckpt", 1, current_model_state={"model.weight": trained}, averaging_state={}, **state
    )
    assert torch.equal(read_weights(both)["weight"], average)
    assert torch.equal(read_weights(both, which="ema")["weight"], average)
    assert torch.equal(read_weights(both, which="raw")["weight"], trained)
    assert torch.equal(read_weights(plain, which="raw")["weight"], average)
    with pytest.raises(XLMError, match="has no averaged weights"):
        read_weights(plain, which="ema")
    save_file({"weight": trained}, tmp_path / "model.safetensors")
    assert torch.equal(read_weights(tmp_path / "model.safetensors")["weight"], trained)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(XLMError, match="damaged or not a safetensors file"):
        read_weights(tmp_path / "model.safetensors")
    with pytest.raises(XLMError, match="do not fit the network"):
        source.load(nn.Linear(3, 3), str(plain))
