"""Against a computation of its own, under a small GPT-2 with random weights."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from xlm.tasks.metrics import Generation
from xlm.tasks.text import GenerativePerplexity

from .conftest import JUDGED_TEXTS as TEXTS

LONGEST = 48


def generations(texts: list[str]) -> list[Generation]:
    rest: Generation = {
        "prompt_ids": [],
        "ids": [],
        "reference_ids": [],
        "prompt": "",
        "text": "",
        "reference": "",
    }
    return [{**rest, "text": text} for text in texts]


def expected(folder: Path, texts: list[str]) -> tuple[float, int, int]:
    """Sum of nats, scored tokens and cut tokens: one evaluation for each token, no batch, no padding."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder)).double().eval()
    nats, scored, cut = 0.0, 0, 0
    for text in texts:
        all_ids: list[int] = tokenizer.backend_tokenizer.encode(text).ids
        ids = all_ids[:LONGEST]
        cut += len(all_ids) - len(ids)
        for place in range(1, len(ids)):
            with torch.no_grad():
                logits: Tensor = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
            nats -= float(logits.log_softmax(0)[ids[place]])
            scored += 1
    return nats, scored, cut


@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_agrees_with_one_evaluation_per_token(scorer: Path, batch_size: int) -> None:
    nats, scored, cut = expected(scorer, TEXTS)
    metric = GenerativePerplexity(str(scorer), batch_size=batch_size, max_length=LONGEST)
    metric.update(generations(TEXTS))
    metrics = metric.compute()
    assert metrics["generative_perplexity"] == pytest.approx(math.exp(nats / scored), rel=1e-4)
    assert (metrics["scored"], metrics["unscored"]) == (3 / 5, 2 / 5)
    assert (metrics["judge_texts"], metrics["judge_tokens"]) == (3, scored)
    assert cut > 0
    assert metrics["truncated_tokens"] == cut / (scored + 3 + 1 + cut)  # 3 first tokens, 1 text of one token


def test_the_entropy_is_that_of_the_judges_tokens(scorer: Path) -> None:
    metric = GenerativePerplexity(str(scorer), max_length=LONGEST)
    metric.update(generations(["a", "the the", "a a a a", "1234"]))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(scorer))
    entropies: list[float] = []
    for text in ("the the", "a a a a", "1234"):
        shares = [count / len(ids) for ids in [tokenizer.encode(text)] for count in Counter(ids).values()]
        entropies.append(-sum(share * math.log(share) for share in shares))
    assert max(entropies) == pytest.approx(math.log(4))  # four different bytes
    assert metric.compute()["judge_entropy"] == pytest.approx(sum(entropies) / 3)


def test_a_judge_that_is_not_there_is_one_line(scorer: Path, tmp_path: Path) -> None:
    GenerativePerplexity(str(scorer), max_length=LONGEST).check([])
    (tmp_path / "empty").mkdir()
    for path in ("no/such/model", str(tmp_path / "empty"), str(tmp_path / "missing")):
        with pytest.raises(
            ValueError, match=f"^no causal language model at path={path}, which is .*$"
        ) as found:
            GenerativePerplexity(path).check([])
        assert "\n" not in str(found.value)
    shutil.copytree(scorer, tmp_path / "judge")
    (tmp_path / "judge" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors in the folder"):
        GenerativePerplexity(str(tmp_path / "judge"), max_length=LONGEST).check([])
    with pytest.raises(ValueError, match=r"max_length=65, but .* takes 64 tokens"):
        GenerativePerplexity(str(scorer), max_length=65).check([])


def test_states_of_two_processes_add_up(scorer: Path) -> None:
    whole, first, second = (GenerativePerplexity(str(scorer), max_length=LONGEST) for _ in range(3))
    whole.update(generations(TEXTS))
    first.update(generations(TEXTS[:2]))
    second.update(generations(TEXTS[2:]))
    first.sums = {name: value + second.sums[name] for name, value in first.sums.items()}
    assert first.compute() == pytest.approx(whole.compute(), rel=1e-5)


def test_nothing_to_score_gives_zeros(scorer: Path) -> None:
    metric = GenerativePerplexity(str(scorer), max_length=LONGEST)
    metric.update(generations(["", "a"]))
    assert metric.compute() == {
        "generative_perplexity": 0.0,
        "judge_entropy": 0.0,
        "judge_texts": 0.0,
        "judge_tokens": 0.0,
        "scored": 0.0,
        "unscored": 1.0,
        "truncated_tokens": 0.0,
    }


def test_the_model_is_loaded_when_it_is_needed(scorer: Path) -> None:
    metric = GenerativePerplexity("no/such/model")
    assert metric.compute()["generative_perplexity"] == 0.0
    with pytest.raises(OSError, match="no/such/model"):
        metric.update(generations(["a text"]))


def test_settings_that_cannot_be_are_refused(scorer: Path) -> None:
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16, got 'int8'"):
        GenerativePerplexity("x", dtype="int8")
    with pytest.raises(ValueError, match="at least 1 and max_length at least 2, got 8 and 1"):
        GenerativePerplexity("x", max_length=1)
    with pytest.raises(ValueError, match=r"max_length=65, but .* takes 64 tokens"):
        GenerativePerplexity(str(scorer), max_length=65).update(generations(["a text"]))


class Touches:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


def test_nothing_of_the_judge_runs(scorer: Path, tmp_path: Path) -> None:
    folder, trace = tmp_path / "judge", tmp_path / "trace"
    shutil.copytree(scorer, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Touches(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        GenerativePerplexity(str(folder), max_length=LONGEST).update(generations(TEXTS))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        GenerativePerplexity(str(folder), max_length=LONGEST).update(generations(TEXTS))
    assert not trace.exists()
