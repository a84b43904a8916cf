"""Folders of torch.distributed.checkpoint from somebody else: nothing in them is executed."""

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save

from xlm.core.config.errors import XLMError
from xlm.core.hub import source
from xlm.core.saving import checkpoints
from xlm.core.saving.resume import newest_valid
from xlm.core.saving.sharded_files import mistake

from .runs import RESUMABLE


class Touches:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What Lightning writes with FSDP: weights, an optimizer with tensors and plain values, the rest."""
    state = {
        "state_dict": {"model.weight": torch.ones(2, 3), "model.bias": torch.ones(3, dtype=torch.bfloat16)},
        "optimizer_0": {
            "state": {"step": torch.ones(())},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
        },
    }
    path = tmp_path / "run" / "last.ckpt"
    save(state, checkpoint_id=path, no_dist=True)
    torch.save({**RESUMABLE, "global_step": 3}, path / checkpoints.SHARDED_REST)
    return path


def rewrite(folder: Path, change: Callable[[Metadata], object]) -> None:
    """Change the table of contents."""
    file = folder / ".metadata"
    table = pickle.loads(file.read_bytes())
    changed = change(table)
    file.write_bytes(pickle.dumps(table if changed is None else changed))


def put_value(folder: Path, value: object) -> None:
    """Replace a value that is no tensor by another."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    name = "__9_0.distcp"
    (folder / name).write_bytes(buffer.getvalue())

    def change(table: Metadata) -> None:
        storage: dict[Any, Any] = table.storage_data
        index = next(index for index in storage if index.fqn.endswith(".lr"))
        storage[index] = replace(storage[index], relative_path=name, offset=0, length=len(buffer.getvalue()))

    rewrite(folder, change)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")


def test_a_usual_one_is_read(folder: Path) -> None:
    assert mistake(folder) is None
    state = source.read(str(folder))
    assert torch.equal(state["weight"], torch.ones(2, 3))
    assert state["bias"].dtype == torch.bfloat16
    found = newest_valid(folder.parent)
    assert (found.header and found.header.step, found.refused) == (3, {})


def test_a_table_that_runs_code_is_refused_by_every_way_in(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    rewrite(folder, lambda table: table.state_dict_metadata.update(x=Touches(trace)))  # pyright: ignore[reportArgumentType]
    reason = "its .metadata names pathlib.Path.touch, which is not part of a checkpoint"
    assert mistake(folder) == reason
    with pytest.raises(XLMError, match=r"is rejected: its \.metadata names .*allow_pickle=true") as error:
        source.read(str(folder))
    assert len(str(error.value).splitlines()) == 1
    assert checkpoints.damage(folder) == reason
    found = newest_valid(folder.parent)
    assert (found.header, found.refused) == (None, {folder: reason})
    assert not trace.exists()


def test_a_value_that_runs_code_is_refused(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    put_value(folder, Touches(trace))
    assert mistake(folder) == "its value optimizer_0.param_groups.0.lr is more than plain values"
    with pytest.raises(XLMError, match="is more than plain values"):
        source.read(str(folder))
    assert newest_valid(folder.parent).header is None
    assert not trace.exists()
    put_value(folder, 0.5)
    assert mistake(folder) is None


def test_who_trusts_it_may_read_it(folder: Path, tmp_path: Path) -> None:
    put_value(folder, Touches(tmp_path / "trace"))
    assert set(source.read(str(folder), allow_pickle=True)) == {"weight", "bias"}
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "named",
    [
        b"cos\nsystem\n.",
        b"cbuiltins\neval\n.",
        b"ctorch\nload\n.",
        b"ctorch.serialization\nload\n.",
        b"ctorch\nserialization.os.system\n.",
        b"ctorch.distributed.checkpoint.metadata\nos\n.",
        b"ctorch.distributed.checkpoint.metadata\nMetadata.__init__\n.",
        b"cpathlib\nPath\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
)
def test_a_table_names_its_own_classes_only(folder: Path, named: bytes) -> None:
    (folder / ".metadata").write_bytes(named)
    assert "which is not part of a checkpoint" in str(mistake(folder))


def drop(table: Metadata) -> None:
    table.storage_data.clear()


def place(**changes: object) -> Callable[[Metadata], None]:
    def change(table: Metadata) -> None:
        for index, info in table.storage_data.items():
            table.storage_data[index] = replace(info, **changes)

    return change


def huge(table: Metadata) -> None:
    entry = table.state_dict_metadata["state_dict.model.weight"]
    assert isinstance(entry, TensorStorageMetadata)
    entry.size = torch.Size([10**12])


DAMAGED: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "another object": (lambda table: {"a": 1}, "holds a dict"),
    "no entries": (lambda table: setattr(table, "state_dict_metadata", None), "damaged"),
    "an entry of another kind": (lambda table: table.state_dict_metadata.update(x=1), "describes x as a int"),  # pyright: ignore[reportArgumentType]
    "a long list": (lambda table: table.planner_data.update(x=("a", 10**12)), r"requests the list \('a', 1"),
    "a large tensor": (huge, "bytes of tensors, its files have"),
    "a file above": (place(relative_path="../other"), r"names the file '\.\./other', which is not in it"),
    "an absolute file": (place(relative_path="/etc/passwd"), "names the file '/etc/passwd'"),
    "bytes that are not there": (place(offset=10**9), "names bytes that"),
    "before the file": (place(offset=-1), "names bytes that"),
    "a transform": (place(transform_descriptors=["zstd"]), "requests the transform"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_table_that_does_not_fit_its_files(folder: Path, case: str) -> None:
    change, message = DAMAGED[case]
    rewrite(folder, change)
    with pytest.raises(XLMError, match=message) as error:
        source.read(str(folder))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle", b"(" * 10_000])
def test_a_table_that_is_no_pickle(folder: Path, content: bytes) -> None:
    (folder / ".metadata").write_bytes(content)
    assert "its .metadata is damaged" in str(mistake(folder))


def test_values_are_those_that_the_table_calls_so(folder: Path) -> None:
    table = pickle.loads((folder / ".metadata").read_bytes())
    values = [
        name for name, entry in table.state_dict_metadata.items() if isinstance(entry, BytesStorageMetadata)
    ]
    assert values == ["optimizer_0.param_groups.0.lr", "optimizer_0.param_groups.0.betas"]
