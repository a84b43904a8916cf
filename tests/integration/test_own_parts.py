"""Data and networks of your own: texts and pairs from a file to generations, and the trunk of the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from xlm.core.config.build import make
from xlm.core.config.errors import XLMError
from xlm.tasks.text import play_rows
from xlm_arlm import ARLM
from xlm_did import DID
from xlm_editflow import EditFlow
from xlm_flexmdm import FlexMDM
from xlm_ilm import ILM
from xlm_mdlm import MDLMDiT, MDLMRotary
from xlm_mlm import MLM
from xlm_udlm import UDLMDiT, UDLMRotary

from .published import Published
from .running import composed, run_fast

SMALL = (
    "model_type=mdlm",
    "model=rotary_tiny_mdlm",
    "model.trunk.d_model=16",
    "model.trunk.num_layers=1",
    "model.trunk.num_heads=1",
    "predictor.sampler.num_steps=4",
    "trainer.precision=32-true",
)
TEXT = (
    "recipe=text",
    *SMALL,
    "trainer.max_steps=2",
    "task.tokenizer.vocab_size=320",
    "task.packing.block_length=16",
    "task.splits={train: 'train[:80%]', val: 'train[80%:90%]', test: 'train[90%:]'}",
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """20 files of real text, one of them empty, one of white space, one of 3 MB."""
    folder = tmp_path / "texts"
    folder.mkdir()
    speeches = [row["text"] for row in play_rows("test")]
    for file in range(20):
        (folder / f"{file:02}.txt").write_text("\n\n".join(speeches[file : file + 5]))
    (folder / "03.txt").write_text("")
    (folder / "04.txt").write_text("\n \n")
    (folder / "05.txt").write_text("\n\n".join(speeches * 12))
    return folder


def cards(cache: Path) -> dict[str, Any]:
    found = {path.parent.name: json.loads(path.read_text()) for path in cache.glob("text/*/*/card.json")}
    assert set(found) == {"train", "val", "test"}
    return found


def test_files_are_prepared_and_trained_on(texts: Path, tmp_path: Path) -> None:
    files = f"task.source.data_files={texts}/*.txt"
    run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *TEXT, files)
    train = cards(tmp_path / "cache")["train"]
    assert (train["rows"], train["counts"]["read"], train["counts"]["refused"]) == (14, 16, 2)
    assert (texts / "05.txt").stat().st_size > 2.9e6
    assert train["length_quantiles"]["1"] > 1e6  # every token of it
    assert train["counts"]["cut"] == train["counts"]["dropped"] == train["counts"]["repaired"] == 0
    results = run_fast(tmp_path, tmp_path / "cache", "train", None, *TEXT, files)
    assert 0 < results["test/prediction/tokens"] <= 16


def test_bytes_that_are_no_utf8_are_refused_or_replaced_and_counted(texts: Path, tmp_path: Path) -> None:
    (texts / "07.txt").write_bytes(b"na\xefve caf\xe9 in another encoding")
    files = f"task.source.data_files={texts}/*.txt"
    with pytest.raises(XLMError, match=r"^task\.tokenizer: .*07\.txt, line 1: .*0xef.*=replace"):
        run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *TEXT, files)
    replaced = "task.source.encoding_errors=replace"
    run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *TEXT, files, replaced)
    assert cards(tmp_path / "cache")["train"]["counts"]["repaired"] == 1


def test_a_pattern_without_text_is_one_error(tmp_path: Path) -> None:
    def prepare() -> None:
        files = f"task.source.data_files={tmp_path}/*.txt"
        run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *TEXT, files)

    with pytest.raises(
        XLMError, match=r"task\.tokenizer: task\.source\.data_files: no file matches .*\*\.txt"
    ):
        prepare()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(XLMError, match=r"(?s)task\.tokenizer.*the rows of its split are empty"):
        prepare()


def test_other_tokens_and_another_metric_are_a_choice_each(published: Published) -> None:
    config = composed(
        None,
        "job_type=train",
        "job_name=x",
        "recipe=text",
        "model_type=flexmdm",
        "model=dit_small_flexmdm",
        "task.source={path: json, data_files: my.jsonl}",
        "text_tokenizer@task.tokenizer=gpt2",
        "+metric@task.metrics.perplexity=gpt2_large_perplexity",
    )
    assert config.task.tokenizer.path == "openai-community/gpt2"
    assert config.task.metrics.perplexity.path == "openai-community/gpt2-large"
    assert set(config.task.metrics) == {"text", "perplexity"}


PAIRS = (
    "recipe=pairs",
    *SMALL,
    "trainer.max_steps=2",
    "task.tokenizer.vocab_size=270",
    "task.length_limit.max_length=16",
    "datamodule.train.lm.bucketing=null",
    "task.splits={train: 'train[:80%]', val: 'train[80%:90%]', test: 'train[90%:]'}",
)
COLUMNS = ("prompt_column=question", "target_column=answer")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """60 pairs; one without an answer, one whose answer is too long, one without a question."""
    rows: list[dict[str, object]] = [{"question": "qqqqqqqq", "answer": f"zzzz {i % 3}"} for i in range(60)]
    rows[3] |= {"answer": None}
    rows[4] |= {"answer": "".join(map(chr, range(35, 95)))}
    rows[5] |= {"question": None}
    file = tmp_path / "own[1].jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_pairs_are_prepared_trained_on_and_generated(pairs: Path, tmp_path: Path) -> None:
    results = run_fast(tmp_path, tmp_path / "cache", "train", None, *PAIRS, *COLUMNS, f"source='{pairs}'")
    assert {"test/prediction/exact_match", "test/lm/nll_per_token"} <= set(results)
    [card] = (tmp_path / "cache" / "pairs").glob("*/train/card.json")
    counts = json.loads(card.read_text())["counts"]
    assert (counts["read"], counts["refused"], counts["dropped"]) == (48, 1, 1)
    records = [json.loads(line) for line in (tmp_path / "fast/predictions.jsonl").read_text().splitlines()]
    assert {record["prompt"] for record in records} == {"qqqqqqqq"}
    assert records[0]["reference"] == "zzzz 0"
    [tokenizer] = (tmp_path / "cache" / "tokenizers").glob("*/tokenizer.json")
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    assert {"qqqqqqqq", "zzzz"} <= set(vocabulary)  # trained on both columns


def test_a_column_that_is_not_there_is_named(pairs: Path, tmp_path: Path) -> None:
    columns = ("prompt_column=question", "target_column=reply")
    with pytest.raises(XLMError, match="no column 'reply'; they have question, answer"):
        run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *PAIRS, *columns, f"source='{pairs}'")


@pytest.mark.parametrize("recipe", ["pairs", "text"])
def test_data_that_are_not_named_are_asked_for(recipe: str) -> None:
    with pytest.raises(XLMError, match=r"source: missing\. Set the data: source=FILE"):
        composed(
            None,
            "job_type=train",
            "job_name=x",
            f"recipe={recipe}",
            "model_type=mdlm",
            "model=rotary_tiny_mdlm",
        )


def test_the_recipe_of_texts_names_its_column() -> None:
    chosen = (
        "recipe=text",
        "model_type=mdlm",
        "model=rotary_tiny_mdlm",
        "source=my.jsonl",
        "text_column=body",
    )
    config = composed(None, "job_type=train", "job_name=x", *chosen)
    assert config.task.preprocess["column"] == config.task.tokenizer["column"] == "body"
    assert config.source == "my.jsonl"


PAGE = Path(__file__).parents[2] / "docs/tutorials/own-trunk.md"
FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"
NETWORKS: dict[str, Any] = {
    "xlm_arlm.ARLM": ARLM,
    "xlm_mlm.MLM": MLM,
    "xlm_ilm.ILM": ILM,
    "xlm_did.DID": DID,
    "xlm_editflow.EditFlow": EditFlow,
    "xlm_mdlm.MDLMRotary": MDLMRotary,
    "xlm_mdlm.MDLMDiT": MDLMDiT,
    "xlm_flexmdm.FlexMDM": FlexMDM,
    "xlm_udlm.UDLMDiT": UDLMDiT,
    "xlm_udlm.UDLMRotary": UDLMRotary,
}
NODE = '{_target_: my_trunk.Encoder, vocab_size: "${vocab.size}", d_model: 16}'


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``my_trunk.py`` as the page has it."""
    [code] = re.findall(r'```python title="my_trunk.py"\n(.*?)```', PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_trunk.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_trunk", raising=False)


def with_trunk(node: str) -> list[str]:
    return ["~model.trunk", f"+model.trunk={node}", FEW_ROWS, "test_after_training=false"]


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize("family", ["mlm", "ilm", "did", "editflow", "mdlm", "flexmdm"])
def test_the_trunk_of_the_page_trains_under_a_family(family: str, tmp_path: Path) -> None:
    metrics = run_fast(tmp_path, tmp_path / "cache", "train", f"star_tiny_{family}", *with_trunk(NODE))
    assert metrics


@pytest.mark.usefixtures("encoder")
def test_a_trunk_that_does_not_fit_ends_in_one_line_before_training(tmp_path: Path) -> None:
    with pytest.raises(XLMError, match=r"(?s)^model: .*model\.trunk \(my_trunk\.Encoder\) is not causal"):
        run_fast(tmp_path, tmp_path / "cache", "train", "star_tiny_arlm", *with_trunk(NODE))
    (tmp_path / "wide_trunk.py").write_text(
        "from my_trunk import Encoder\n\n\nclass Wide(Encoder):\n"
        "    def forward(self, *arguments):\n"
        "        hidden = super().forward(*arguments)\n"
        "        return hidden.repeat(1, 1, 2)\n"
    )
    node = NODE.replace("my_trunk.Encoder", "wide_trunk.Wide")
    expected = r"model\.trunk \(wide_trunk\.Wide\) gave hidden states of shape \(2, \d+, 32\).*d_model=16"
    with pytest.raises(XLMError, match=expected):
        run_fast(tmp_path, tmp_path / "cache", "train", "star_tiny_mlm", *with_trunk(node))


@pytest.mark.parametrize("family", ["arlm", "mlm", "ilm", "did", "editflow", "mdlm", "flexmdm", "udlm"])
def test_a_config_makes_the_network_of_its_sizes(family: str) -> None:
    """With the same seed the weights are those of the constructor by sizes, where a run's losses begin."""
    names = ["rotary_micro_mdlm", "dit_tiny_mdlm"] if family == "mdlm" else [None]
    for name in names:
        chosen = [] if name is None else [f"model={name}"]
        config = composed(f"star_tiny_{family}", "job_type=train", "job_name=x", *chosen)
        config.vocab.size = 20  # as the tokenizer fills it in
        node: Any = OmegaConf.to_container(config.model, resolve=True)
        torch.manual_seed(1)
        made = make(node, "model").state_dict()
        sizes = {key: value for key, value in node.pop("trunk").items() if key not in ("_target_", "causal")}
        rest = {key: value for key, value in node.items() if not key.endswith(("_target_", "_embedding"))}
        torch.manual_seed(1)
        expected = NETWORKS[node["_target_"]](**{**sizes, **rest}).state_dict()
        assert list(made) == list(expected)
        for key, value in expected.items():
            assert torch.equal(made[key], value), key
