"""Saving and loading: what holds for every network that can be shared.

The files of weights are changed byte by byte, so that nothing but torch is needed here.
"""
# ruff: noqa: D102  # names and failure messages describe the tests

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self, cast

import pytest
import torch
from torch import Tensor, nn


class SavedModel(Protocol):
    """A network with huggingface_hub's methods."""

    max_shard_size: str

    def save_pretrained(self, save_directory: Path, /) -> object:
        """Write the weights and ``config.json``."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str | Path, /) -> Self:
        """Make the network that a folder holds."""
        ...


class SavingSuite:
    """Subclass it with a name that pytest collects, and fill in what has no value here."""

    def build_model(self, d_model: int) -> SavedModel:
        """A small network of this width with a vocabulary of 12."""
        raise NotImplementedError

    def run(self, model: nn.Module) -> object:
        """Outputs of the network on the same rows."""
        return model(torch.arange(12).reshape(2, 6))

    def test_a_saved_network_comes_back_bit_for_bit(self, tmp_path: Path) -> None:
        model = self._saved(tmp_path)
        assert not [path.name for path in tmp_path.iterdir() if path.suffix in {".bin", ".pt", ".ckpt"}]
        self._assert_same(self._load(tmp_path), model)

    def test_large_weights_are_split_and_come_back(self, tmp_path: Path) -> None:
        model = self._saved(tmp_path, max_shard_size="2KB")
        parts = sorted(path.name for path in tmp_path.glob("*.safetensors"))
        assert len(parts) > 1
        assert parts[0].startswith("model-00001-of-")
        self._assert_same(self._load(tmp_path), model)
        (tmp_path / parts[-1]).unlink()
        with pytest.raises(RuntimeError, match="Missing key"):
            self._load(tmp_path)

    def test_an_index_that_names_other_files_is_not_followed(self, tmp_path: Path) -> None:
        model = self._saved(tmp_path / "model", max_shard_size="2KB")
        (index,) = (tmp_path / "model").glob("*.index.json")
        content = json.loads(index.read_text())
        content["weight_map"] = dict.fromkeys(content["weight_map"], "../outside.safetensors")
        index.write_text(json.dumps(content))
        self._saved(tmp_path / "other", seed=1)
        (tmp_path / "other" / "model.safetensors").rename(tmp_path / "outside.safetensors")
        self._assert_same(self._load(tmp_path / "model"), model)

    def test_a_folder_that_is_not_there_is_called_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        network = type(self.build_model(16))
        nowhere: list[str | Path] = [
            "./nothing_here",
            "runs/none/model",
            "~/nothing_here",
            tmp_path / "nothing",
        ]
        for place in [*nowhere, Path("nothing_here")]:
            with pytest.raises(ValueError, match="there is no such folder") as error:
                network.from_pretrained(place)
            assert str(error.value).startswith(f"{place}: ")
        self._saved(tmp_path / "saved")
        with pytest.raises(ValueError, match=r"model\.safetensors is a file; its folder"):
            network.from_pretrained("saved/model.safetensors")
        (tmp_path / "saved" / "config.json").unlink()
        with pytest.raises(ValueError, match=r"saved has no config\.json with the arguments of"):
            network.from_pretrained("saved")

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b'{"d_model": ' + b"[" * 500 + b"]" * 500 + b"}", "nested more than 32 levels deep"),
            (b"[" * 100_000, "recursion"),
            (b'{"d_model": ' + b"9" * 5000 + b"}", r"an integer of 5,000 digits, 9999999999\.\.\."),
            (b'{"d_model": 16, "head": "\xff"}', "can't decode byte 0xff"),
            (b"[16, 2, 2]", "it holds a list, not arguments by name"),
            (b'{"d_model": 16', "delimiter"),
            (b"", "Expecting value"),
            (b" " * 2**18 + b"{}", "larger than 256 KiB"),
        ],
    )
    def test_a_config_that_is_none_is_one_error(self, content: bytes, found: str, tmp_path: Path) -> None:
        self._saved(tmp_path)
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=found) as error:
            self._load(tmp_path)
        assert str(error.value).startswith(f"{tmp_path / 'config.json'} cannot be used: ")
        assert "\n" not in str(error.value)

    def test_missing_and_extra_weights_are_named(self, tmp_path: Path) -> None:
        self._saved(tmp_path)
        old, new = self._rename_a_weight(tmp_path / "model.safetensors")
        with pytest.raises(RuntimeError, match="Missing key") as error:
            self._load(tmp_path)
        assert old in str(error.value)
        assert new in str(error.value)

    def test_weights_of_another_shape_are_named(self, tmp_path: Path) -> None:
        self._saved(tmp_path)
        self._saved(tmp_path / "wide", d_model=24)
        (tmp_path / "wide" / "model.safetensors").replace(tmp_path / "model.safetensors")
        with pytest.raises(RuntimeError, match=r"size mismatch for .*embedding"):
            self._load(tmp_path)

    def test_a_truncated_file_is_an_error(self, tmp_path: Path) -> None:
        self._saved(tmp_path)
        file = tmp_path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(Exception, match=r"[Ii]ncomplete"):
            self._load(tmp_path)

    def test_a_pickle_is_never_read(self, tmp_path: Path) -> None:
        self._saved(tmp_path)
        file, trace = tmp_path / "model.safetensors", tmp_path / "trace"
        file.write_bytes(pickle.dumps(_Touches(trace)))
        with pytest.raises(Exception, match=r"[Hh]eader"):
            self._load(tmp_path)
        file.rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
            self._load(tmp_path)
        assert not trace.exists()

    def _saved(
        self, folder: Path, *, seed: int = 0, d_model: int = 16, max_shard_size: str = "5GB"
    ) -> SavedModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build_model(d_model)
            with torch.no_grad():
                for parameter in cast("nn.Module", model).parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        model.max_shard_size = max_shard_size
        model.save_pretrained(folder)
        return model

    def _load(self, folder: Path) -> SavedModel:
        return type(self.build_model(16)).from_pretrained(folder)

    def _assert_same(self, loaded: SavedModel, model: SavedModel) -> None:
        assert not cast("nn.Module", loaded).training
        with torch.no_grad():
            pairs = zip(
                _tensors(self.run(cast("nn.Module", loaded))),
                _tensors(self.run(cast("nn.Module", model).eval())),
                strict=True,
            )
            for found, expected in pairs:
                assert torch.equal(found, expected)

    @staticmethod
    def _rename_a_weight(file: Path) -> tuple[str, str]:
        """Rename a weight in the header (8 bytes of its length, then JSON); returns both names."""
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + size].decode()
        old = next(name for name in json.loads(header) if name != "__metadata__")
        new = old[:-1] + "#"
        file.write_bytes(content[:8] + header.replace(f'"{old}"', f'"{new}"').encode() + content[8 + size :])
        return old, new


class _Touches:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def _tensors(output: object) -> Iterator[Tensor]:
    """Every tensor of a network's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for value in cast("tuple[object, ...]", output):
            yield from _tensors(value)
