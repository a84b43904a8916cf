"""Names, files, folders and data sets that a config may hold: one pattern of names, no place elsewhere."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from xlm.core.config.errors import XLMError
from xlm.core.config.names import ALLOWED, LONGEST
from xlm.core.config.schema import validate
from xlm.core.hub.allow_list import READERS as ALLOWED_READERS
from xlm.core.hub.allow_list import check_names
from xlm.core.hub.pushed_config import portable

from .conftest import Compose

READERS = tuple(ALLOWED_READERS)


@pytest.mark.parametrize(
    "value",
    ["/", "/etc/passwd", "~", "~/x", "..", "a/../..", "a\\..\\b", "\\\\host\\x", "C:\\x", "c:/x", "file:///etc/passwd",
     "https://evil.example", "s3://x", "simplecache::x"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["vocabulary", "saved", "anything"])
def test_no_text_names_a_place_elsewhere(key: str, value: str) -> None:
    for config in ({"model": {key: value}}, {"model": {"x": [value]}}, {"model": {key: "${x}"}, "x": value}):
        with pytest.raises(XLMError, match="is a path that is not below the working directory"):
            check_names(config, "x")


def test_usual_texts_name_no_place() -> None:
    texts = [
        "</s>",
        "<|endoftext|>",
        "[SEP]",
        "train[:90%]",
        "refs/convert/parquet",
        "a..b",
        "val/lm/nll",
        "$",
        "",
    ]
    check_names({"model": {"texts": texts}}, "x")


@pytest.mark.parametrize("folder", ["/x", "x", "", "..", "${datamodule.cache_dir}/.git", None, 1, "???"])
def test_folders_that_are_written_are_below_the_cache(folder: object) -> None:
    with pytest.raises(XLMError, match=r"folder: .* is not a folder below|more than a reference"):
        check_names({"task": {"tokenizer": {"folder": folder}}}, "x")
    for inside in ("${datamodule.cache_dir}", "${datamodule.cache_dir}/tokenizers/a-1"):
        check_names({"task": {"tokenizer": {"folder": inside}}}, "x")


@pytest.mark.parametrize("key", ["path", "data_files", "vocabulary"])
def test_no_link_leads_out_of_the_working_directory(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b").touch()
    (tmp_path / "work" / "inside").mkdir(parents=True)
    (tmp_path / "work" / "inside" / "b").touch()
    (tmp_path / "work" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "work" / "same").symlink_to(tmp_path / "work" / "inside")
    (tmp_path / "work" / "circle").symlink_to(tmp_path / "work" / "circle")
    (tmp_path / "work" / "inside" / "file").symlink_to(tmp_path / "outside" / "b")
    monkeypatch.chdir(tmp_path / "work")
    for value in ("inside/b", "same/b", "nothing/b"):
        check_names({"model": {key: value}}, "x")
    for value in (
        "link/b",
        "circle/b",
        "inside/file",
        *(["*/b", "inside/f*"] if key == "data_files" else []),
    ):
        with pytest.raises(XLMError, match="link out of the working directory"):
            check_names({"model": {key: value}}, "x")


@pytest.mark.parametrize("path", ["csv", "json", "parquet", "text", "user/name"])
@pytest.mark.parametrize(
    "data_files",
    [None, "???", "my texts/**/*.txt", ["a.csv", "b.csv"], {"train": "train-*.parquet", "test": ["a", "b"]}],
)
@pytest.mark.parametrize("reader", READERS)
def test_formats_of_datasets_and_files_below_the_working_directory_pass(
    reader: str, path: str, data_files: object
) -> None:
    node = {
        "_target_": reader,
        "_partial_": True,
        "path": path,
        "data_files": data_files,
        "sample_by": "document",
        "encoding_errors": "strict",
    }
    check_names({"source": node}, "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "pandas", "data_files": "x.pkl"}, "'pandas' is not a repository of the Hub"),
        ({"path": "pandas"}, "'pandas' is not a repository of the Hub"),
        ({"path": "webdataset", "data_files": "x.tar"}, "'webdataset' is not a repository of the Hub"),
        ({"path": "csv ", "data_files": "x.csv"}, "'csv ' is not a repository of the Hub"),
        ({"path": "./csv", "data_files": "x.csv"}, "'./csv' is not a repository of the Hub"),
        (
            {"path": "${source.name}", "name": "/x", "data_files": "x.csv"},
            "'/x' is not a repository of the Hub",
        ),
        ({"path": "../../secret/data"}, "is not a repository of the Hub"),
        ({"path": "/etc/x"}, "is not a repository of the Hub"),
        ({}, "without a path is not allowed"),
        ({"path": None}, "None is not a repository of the Hub"),
        ({"path": "a/b", "_args_": ["pandas"]}, "_args_ is not allowed"),
        ({"path": "csv", "data_dir": "/etc"}, "with data_dir is not allowed"),
        ({"path": "csv", "storage_options": {}}, "with storage_options is not allowed"),
        ({"path": "a/b", "trust_remote_code": True}, "with trust_remote_code is not allowed"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_data_sets_come_from_the_hub_or_from_plain_files(
    reader: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(XLMError, match=message):
        check_names({"source": {"_target_": reader, **arguments}}, "x")


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "~/.ssh/id_rsa",
        "../secret.txt",
        "a/../../secret.txt",
        "..\\secret.txt",
        "C:/secret.txt",
        "https://evil.example/x.csv",
        "reference://::https://evil.example/x.json",
        "simplecache::x.csv",
        "${text}",
        1,
    ],
)
@pytest.mark.parametrize("node", [{}, *({"_target_": reader, "path": "text"} for reader in READERS)])
def test_files_are_below_the_working_directory(file: object, node: dict[str, object]) -> None:
    for files in (file, ["a.txt", file], {"train": "a.txt", "test": [file]}):
        with pytest.raises(XLMError, match=r"data_files\S*: .* is not a pattern of files below"):
            check_names({"source": {**node, "data_files": files}, "text": "$"}, "x")
    with pytest.raises(XLMError, match=r"local: .* is not a pattern of files below"):
        check_names(
            {"source": {**node, "_target_": READERS[1], "path": "text", "local": file}, "text": "$"}, "x"
        )


def test_places_of_a_machine_are_not_pushed() -> None:
    def pushed(data_files: object) -> object:
        config = {"task": {"source": {"data_files": data_files}}}
        return portable(config, config)["task"]["source"]["data_files"]

    assert pushed("/home/me/*.txt") == pushed("~/texts/*.txt") == "???"
    assert pushed({"train": "/data/a", "test": ["b", "/data/c"]}) == {"train": "???", "test": ["b", "???"]}
    node = {"source": {"data_files": None}, "tokenizer": {"saved": "/home/me/tokenizer"}}
    assert portable({"task": node}, {"task": node})["task"]["tokenizer"]["saved"] == "???"
    for data_files in (None, "texts/*.txt", {"train": "a"}, "hf://datasets/a/b/c.csv"):
        assert pushed(data_files) == data_files


@pytest.mark.parametrize("path", ["csv", "pandas", "/etc", "../data", "~/data", "${vocab.size}", 1])
def test_paths_name_repositories_whatever_takes_them(path: object) -> None:
    with pytest.raises(XLMError, match=r"source\.path: .* is not a repository of the Hub"):
        check_names({"source": {"_target_": "torch.optim.AdamW", "path": path}}, "x")


NO_NAMES = ("", ".", "..", "../../elsewhere", "/elsewhere", "a/b", "a\\b", "-a", ".a", "a b", "a\n", "é",
            "a\0", "~", "C:a", "a" * (LONGEST + 1))  # fmt: skip
VALUES = ("job_name", "task.name")
KEYS = ("datamodule.train", "datamodule.val", "datamodule.test", "task.metrics", "loss_metrics", "callbacks",
        "logger")  # fmt: skip


@pytest.mark.parametrize("key", VALUES)
def test_a_value_that_is_no_name_is_refused(compose_toy: Compose, key: str) -> None:
    config = compose_toy("job_type=train")
    for name in ("a", "star_tiny-1.0", "2024", "a" * LONGEST):
        OmegaConf.update(config, key, name)
        validate(OmegaConf.to_container(config, resolve=True))  # pyright: ignore[reportArgumentType]
    for name in NO_NAMES:
        OmegaConf.update(config, key, name)
        with pytest.raises(XLMError) as error:
            validate(OmegaConf.to_container(config, resolve=True))  # pyright: ignore[reportArgumentType]
        assert str(error.value).splitlines()[1:] == [f"  {key}: got {name!r}. {ALLOWED}."]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_no_name_is_refused(compose_toy: Compose, key: str) -> None:
    config = OmegaConf.to_container(compose_toy("job_type=train"), resolve=True)
    assert isinstance(config, dict)
    node = config
    for part in key.split("."):
        node = node[part]
    entry = next(iter(node.values()), {"_target_": "a.b"})
    for name in NO_NAMES:
        node[name] = entry
        with pytest.raises(XLMError, match="A name starts with") as error:
            validate(config)  # pyright: ignore[reportArgumentType]
        assert f"got {name!r}" in str(error.value)
        del node[name]
