"""Small parts: metrics of sums and of lists, replay of traces, schedules, the run folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from xlm.core.config.errors import XLMError
from xlm.core.evaluation.metrics import (
    GenerationCost,
    LikelihoodMean,
    LossMean,
    SamplerLikelihoodMean,
    SummedMetric,
    costs,
)
from xlm.core.evaluation.predictions import PredictionWriter, decode, replay
from xlm.core.protocols import Trace
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.lr_schedules import WarmupSchedule
from xlm.modules.records import Prediction, SamplerLikelihood

from .runs import RESUMABLE


def test_replay_inserts_and_writes() -> None:
    from toy_family import ToyTrace

    # row 1: insert 5; step 2: insert 7 left of it and 8 at the end; step 3: write 9 in the middle
    edits = [(1, 1, 0, 0, 5), (1, 0, 0, 0, 3), (2, 1, 0, 0, 7), (2, 1, 0, 2, 8), (3, 1, 1, 1, 9)]
    trace = ToyTrace(*torch.tensor(edits).T)
    assert states(trace, 1) == [(1, [5], {0}), (2, [7, 5, 8], {0, 2}), (3, [7, 9, 8], {1})]
    assert states(trace, 0) == [(1, [3], {0})]
    assert states(trace, 2) == []


def states(trace: Trace, row: int) -> list[tuple[int, list[int], set[int]]]:
    return [(state.step, state.ids, state.edited) for state in replay(trace, row)]


def test_replay_knows_deletions_and_masks() -> None:
    from toy_family import ToyTrace

    # step 1: insert 5, 6, 7; step 2: write 9 over 6, delete 5; step 3: mask 7 again
    edits = [
        (1, 0, 0, 0, 5),
        (1, 0, 0, 1, 6),
        (1, 0, 0, 2, 7),
        (2, 0, 1, 1, 9),
        (2, 0, 2, 0, 0),
        (3, 0, 1, 1, 1),
    ]
    trace = ToyTrace(*torch.tensor(edits).T)
    assert states(trace, 0)[1:] == [(2, [9, 7], {0}), (3, [9, 1], {1})]
    kinds = [[(edit.kind, edit.token) for edit in state.edits] for state in replay(trace, 0, mask_id=1)]
    assert kinds[1:] == [[("write", 9), ("delete", 5)], [("remask", 1)]]


def test_marks_shift_with_later_insertions_of_the_same_step() -> None:
    from toy_family import ToyTrace

    trace = ToyTrace(*torch.tensor([(1, 0, 0, 0, 1), (1, 0, 0, 0, 2), (1, 0, 0, 1, 3)]).T)
    assert states(trace, 0) == [(1, [2, 3, 1], {0, 1, 2})]


def test_parts_of_all_ranks_are_merged_in_the_order_of_rows(tmp_path: Path) -> None:
    from toy_family import ToyPrediction, ToyTokenizer

    tokenizer = ToyTokenizer()
    writers = [PredictionWriter(tmp_path, num_traces=0, rank=rank, world_size=2) for rank in (0, 1)]
    for rank, writer in enumerate(writers):
        writer.open()
        for start in (rank, rank + 4):
            ids = torch.tensor([[start], [start + 2]]) % 6
            prediction = ToyPrediction(ids, torch.ones(2).long(), torch.ones(2).long(), None)
            examples = [{"seed": 0, "target_ids": row} for row in ids]
            generations = decode(prediction, examples, tokenizer)  # pyright: ignore[reportArgumentType]  # dicts
            rows, spent = (start, start + 2), costs(prediction, 3.0)
            writer.write("test/prediction", rows, prediction, generations, tokenizer, spent)
        writer.close()
    writers[0].merge()
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == list(range(8))
    assert [record["ids"] for record in records] == [[row % 6] for row in range(8)]
    assert [record["batch"] for record in records] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_likelihood_metrics() -> None:
    from toy_family import ToyLikelihood

    nll = torch.tensor([2.0, 4.0, 9.0])
    metric = SummedMetric[ToyLikelihood](LikelihoodMean())
    metric.update(ToyLikelihood(nll[:2], torch.tensor([1, 3]), nll_kind="bound", num_draws=4))
    metric.update(ToyLikelihood(nll[2:], torch.tensor([6]), nll_kind="bound", num_draws=4))
    metrics = metric.compute()
    assert metrics["nll"] == pytest.approx(5)
    assert metrics["nll_standard_error"] == pytest.approx(float(nll.std()) / math.sqrt(3))
    assert metrics["nll_per_token"] == pytest.approx(1.5)
    assert metrics["perplexity"] == pytest.approx(math.exp(1.5))
    assert metrics["bits_per_token"] == pytest.approx(1.5 / math.log(2))
    assert (metrics["is_bound"], metrics["models_length"], metrics["num_draws"]) == (1, 0, 4)


def test_costs_of_generation() -> None:
    """Calls and states are the evaluations where a prediction does not have them."""
    lengths, nfe = torch.tensor([4, 2]), torch.tensor([2, 1])
    plain = Prediction(ids=torch.zeros(2, 4), lengths=lengths, nfe=nfe, trace=None)
    searched = replace(plain, calls=torch.tensor([1, 1]), states=torch.tensor([8, 4]))
    spent = [costs(prediction, 3.0) for prediction in (plain, searched)]
    assert spent[0]["calls"].tolist() == spent[0]["states"].tolist() == [2, 1]
    assert spent[1]["seconds"].tolist() == [1.5, 1.5]
    metric = GenerationCost()
    for rows in spent:
        metric.update(rows)
    assert metric.compute() == {
        "nfe_per_sequence": 1.5,
        "calls_per_sequence": 5 / 4,
        "states_per_sequence": 15 / 4,
        "seconds_per_sequence": 1.5,
        "tokens_per_evaluation": 2.0,
        "length": 3.0,
    }


def test_weights_of_constrained_texts() -> None:
    lengths = torch.tensor([1, 1])
    plain = Prediction(ids=torch.zeros(2, 1), lengths=lengths, nfe=lengths, trace=None)
    metric = GenerationCost()
    for weights in ([0.5, 0.25], [0.0, 0.5]):
        metric.update(costs(replace(plain, log_weight=torch.tensor(weights).log()), 1.0))
    computed = metric.compute()
    assert computed["constraint_probability"] == pytest.approx(1.25 / 4)
    assert computed["effective_sample_share"] == pytest.approx(1.25**2 / (0.25 + 0.0625 + 0.25) / 4)


def test_likelihood_of_a_sampler_is_the_mean_over_the_texts_that_it_can_write() -> None:
    metric = SummedMetric[SamplerLikelihood](SamplerLikelihoodMean())
    infinity = math.inf
    weights = torch.tensor([[-1.0, -2.0, -infinity, -1.0], [-1.0, -infinity, -infinity, -1.0]]).double()
    gaps = torch.tensor([infinity, 1e-6, 1e-4, infinity]).double()
    for rows in (slice(0, 2), slice(2, 4)):
        metric.update(
            SamplerLikelihood.of(
                weights[:, rows],
                num_tokens=torch.tensor([3, 1, 5, 2])[rows],
                is_exact=False,
                models_length=True,
                smallest_gap=gaps[rows],
                nfe=torch.tensor([4, 6, 2, 8])[rows],
            )
        )
    computed = metric.compute()
    nll = torch.tensor([1.0, 2.0 + math.log(2), 1.0])
    assert computed["sampler_nll"] == pytest.approx(float(nll.mean()))
    assert computed["sampler_nll_per_token"] == pytest.approx(float(nll.sum()) / 6)
    assert computed["sampler_perplexity"] == infinity
    assert (computed["sampler_is_bound"], computed["sampler_num_draws"]) == (1, 2)
    assert (computed["share_impossible"], computed["share_impossible_draws"]) == (1 / 4, 3 / 8)
    assert (computed["share_near_ties"], computed["sampler_nfe"]) == (1 / 4, 5)
    assert not set(computed) & set(LikelihoodMean().compute()), "names of the bound"


EVERY = [LossMean(["token"]), LikelihoodMean(), GenerationCost(), SamplerLikelihoodMean()]


@pytest.mark.parametrize("metric", EVERY)
def test_empty_metrics_are_not_nan(
    metric: LossMean | LikelihoodMean | GenerationCost | SamplerLikelihoodMean,
) -> None:
    assert all(math.isfinite(value) for value in metric.compute().values())


def learning_rates(schedule: WarmupSchedule, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, num_steps=num_steps)
    rates: list[float] = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [5, 0.25])
def test_warmup_in_steps_or_as_a_fraction(warmup: float) -> None:
    rates = learning_rates(WarmupSchedule(name="linear", warmup=warmup), 20)
    assert rates[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == pytest.approx([1 - step / 15 for step in range(15)])


def test_cosine_without_warmup() -> None:
    rates = learning_rates(WarmupSchedule(name="cosine"), 10)
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])


def test_negative_warmup_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup is -1"):
        WarmupSchedule(name="cosine", warmup=-1)


def test_the_best_checkpoint_is_preferred(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(XLMError, match="has no checkpoint"):
        folder.best_checkpoint()
    folder.checkpoints.mkdir()
    for name in ("last.ckpt", "best-00000100.ckpt"):
        torch.save(RESUMABLE | {"global_step": 100}, folder.checkpoints / name)
    assert folder.best_checkpoint().name == "best-00000100.ckpt"
    (folder.checkpoints / "best-00000100.ckpt").write_bytes(b"PK")
    assert folder.best_checkpoint().name == "last.ckpt"


def test_results_of_jobs_never_share_a_folder(tmp_path: Path) -> None:
    folders = {RunFolder(tmp_path).start_job("eval", {"a": 1}) for _ in range(3)}
    assert len(folders) == 3


class Distinct:
    """Counts different numbers."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums = {"seen": torch.zeros((), dtype=torch.int64)}
        self.lists = {"numbers": torch.zeros((0, 2), dtype=torch.int64)}

    def update(self, numbers: Tensor) -> None:
        self.sums["seen"] += len(numbers)
        self.lists["numbers"] = torch.cat([self.lists["numbers"], torch.stack([numbers, numbers], dim=1)])

    def compute(self) -> Mapping[str, float]:
        return {"seen": float(self.sums["seen"]), "distinct": float(len(self.lists["numbers"].unique(dim=0)))}


def test_lists_are_joined_over_batches_and_forgotten() -> None:
    metric = SummedMetric[Tensor](Distinct())
    for batch in ([1, 2], [2, 3], []):
        metric.update(torch.tensor(batch, dtype=torch.int64))
    assert metric.compute() == {"seen": 4.0, "distinct": 3.0}
    metric.reset()
    metric.update(torch.tensor([5]))
    assert metric.compute() == {"seen": 1.0, "distinct": 1.0}


def test_lists_of_several_ranks_are_joined() -> None:
    """torchmetrics hands over one tensor once the ranks are joined; a rank without rows adds a flat one."""
    metric = SummedMetric[Tensor](Distinct())
    metric.update(torch.tensor([1, 2]))
    metric.numbers = torch.tensor([[1, 1], [2, 2], [7, 7]])
    assert metric.compute()["distinct"] == 3.0
    metric = SummedMetric[Tensor](Distinct())
    metric.update(torch.tensor([], dtype=torch.int64))
    metric.numbers = [torch.zeros(0), torch.tensor([[4, 4]])]
    assert metric.compute()["distinct"] == 1.0
