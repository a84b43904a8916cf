"""Features against one evaluation per text; the authors' package compares them, see `nox -s judges`."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from xlm.tasks.metrics import Generation
from xlm.tasks.text import Mauve, mauve_score

from .conftest import JUDGED_TEXTS

LONGEST = 48
REAL = ["a cat", "the rat ate", "", "hats"]


class Package(types.SimpleNamespace):
    """In the place of the authors' package: keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(asked={})

    def compute_mauve(self, **arguments: object) -> types.SimpleNamespace:
        self.asked = arguments
        return types.SimpleNamespace(mauve=0.25)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    package = Package()
    monkeypatch.setitem(sys.modules, "mauve", package)
    return package


def rows() -> list[Generation]:
    rest: Generation = {
        "prompt_ids": [],
        "ids": [],
        "reference_ids": [],
        "prompt": "",
        "text": "",
        "reference": "",
    }
    references = [*REAL, "mats"]
    return [
        {**rest, "text": text, "reference": real} for text, real in zip(JUDGED_TEXTS, references, strict=True)
    ]


def expected(folder: Path, texts: list[str]) -> Tensor:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    found: list[Tensor] = []
    for text in filter(None, texts):
        ids = torch.tensor([tokenizer.encode(text)[:LONGEST]])
        with torch.no_grad():
            found.append(model(ids, output_hidden_states=True).hidden_states[-1][0, -1])
    return torch.stack(found)


def test_features_are_the_last_hidden_states_of_the_last_tokens(scorer: Path, package: Package) -> None:
    metric = Mauve(str(scorer), batch_size=3, max_length=LONGEST, seed=7)
    metric.update(rows()[:2])
    metric.update(rows()[2:])
    assert not metric.sums.keys() & metric.lists.keys()
    assert metric.compute() == {"mauve": 0.25, "mauve_texts": 4.0, "mauve_references": 4.0}
    assert package.asked["seed"] == 7
    for name, texts in (("q_features", JUDGED_TEXTS), ("p_features", [*REAL, "mats"])):
        found = torch.tensor(package.asked[name])
        torch.testing.assert_close(found, expected(scorer, texts), atol=1e-5, rtol=1e-4)


def test_states_of_two_processes_are_joined(scorer: Path, package: Package) -> None:
    whole, first, second = (Mauve(str(scorer), max_length=LONGEST) for _ in range(3))
    whole.update(rows())
    first.update(rows()[:2])
    second.update(rows()[2:])
    first.sums = {name: value + second.sums[name] for name, value in first.sums.items()}
    first.lists = {name: torch.cat((value, second.lists[name])) for name, value in first.lists.items()}
    first.compute()
    joined = torch.tensor(package.asked["q_features"])
    whole.compute()
    torch.testing.assert_close(joined, torch.tensor(package.asked["q_features"]), atol=1e-5, rtol=1e-4)
    whole.reset()
    assert whole.compute() == {"mauve": 0.0, "mauve_texts": 0.0, "mauve_references": 0.0}


def test_what_is_missing_is_one_line(scorer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ModuleNotFoundError, match=r'uv pip install "xlm-tasks\[mauve\]"'):
        Mauve("no/such/model").check(["b"])
    with pytest.raises(ModuleNotFoundError, match=r'uv pip install "xlm-tasks\[mauve\]"'):
        mauve_score(["a"], ["b"])
    with pytest.raises(ValueError, match="got 0 and 1"):
        mauve_score([], ["b"])
    monkeypatch.setitem(sys.modules, "mauve", types.ModuleType("mauve"))
    with pytest.raises(ValueError, match=r"which have none: set columns of the loader to \[target_ids\]"):
        Mauve(str(scorer)).check(["", ""])
    with pytest.raises(ValueError, match="no causal language model at path=no/such/model"):
        Mauve("no/such/model").check(["b"])
    Mauve(str(scorer), max_length=LONGEST).check(["b"])


def test_of_texts_in_python(scorer: Path, package: Package) -> None:
    assert mauve_score(["the cat"], ["real", ""], model=str(scorer), max_length=LONGEST, seed=3) == 0.25
    assert package.asked["seed"] == 3
    torch.testing.assert_close(torch.tensor(package.asked["p_features"]), expected(scorer, ["real"]))
