"""The five families with all parts of a plain loop, without the harness, for the GPU benchmarks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xlm.modules import LogLinear, Polynomial, row_seeds
from xlm_arlm import ARLM, ARLMCollator, ARLMLoss, ARLMPredictor, ARLMPromptCollator
from xlm_flexmdm import (
    FlexMDM,
    FlexMDMCollator,
    FlexMDMLoss,
    FlexMDMPredictor,
    FlexMDMPromptCollator,
    Interpolant,
)
from xlm_ilm import ILM, ILMCollator, ILMLoss, ILMPredictor, ILMPromptCollator
from xlm_mdlm import (
    MDLMCollator,
    MDLMDiT,
    MDLMLoss,
    MDLMPredictor,
    MDLMPromptCollator,
    MDLMRotary,
)
from xlm_mlm import MLM, MLMCollator, MLMLoss, MLMPredictor, MLMPromptCollator

NAMES = ("arlm", "mlm", "ilm", "mdlm", "flexmdm")
PAD, CLS, MASK, EOS, BOS, FIRST = 0, 1, 2, 3, 4, 7
"""Special ids, those of NumberTokenizer; ids below FIRST never occur in a text."""
SPECIAL = list(range(FIRST))


@dataclass(frozen=True)
class Size:
    """A network: width, blocks, heads, ids."""

    d_model: int
    num_layers: int
    num_heads: int
    vocab_size: int
    dropout: float = 0.0

    def arguments(self) -> dict[str, Any]:
        """Arguments that every network takes."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Parts:
    """One family, made."""

    model: nn.Module
    loss: Callable[[nn.Module, Any], Any]
    collate: Callable[[Sequence[Any]], Any]
    collate_prompts: Callable[[Sequence[Any]], Any]
    predict: Callable[..., Any]


def text_parts(family: str, size: Size, max_length: int) -> Parts:
    """A family with the settings of its experiments on long texts, with ``max_length`` tokens per row."""
    ids: dict[str, Any] = {"pad_id": PAD, "mask_id": MASK, "bos_id": None, "eos_id": None}
    cells: dict[str, Any] = {"mask_id": MASK, "pad_id": PAD, "eos_id": None, "suppressed_ids": SPECIAL}
    if family == "arlm":
        return Parts(
            ARLM(**size.arguments()),
            ARLMLoss(),
            ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=None),
            ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=max_length),
            ARLMPredictor(pad_id=PAD, eos_id=EOS, suppressed_ids=SPECIAL),
        )
    if family == "mlm":
        return Parts(
            MLM(**size.arguments()),
            MLMLoss(**cells),
            MLMCollator(**ids),
            MLMPromptCollator(**ids, default_length=max_length),
            MLMPredictor(**cells),
        )
    if family == "mdlm":
        return Parts(
            MDLMDiT(**size.arguments()),
            MDLMLoss(**cells),
            MDLMCollator(**ids, schedule=LogLinear()),
            MDLMPromptCollator(**ids, default_length=max_length),
            MDLMPredictor(**cells, schedule=LogLinear(), sampler="ancestral"),
        )
    return _of_any_length(family, size, max_length, greedy=False)


def path_parts(family: str, size: Size, max_length: int) -> Parts:
    """A family with its best settings for star graphs; texts have up to ``max_length`` tokens."""
    ids: dict[str, Any] = {"pad_id": PAD, "mask_id": MASK, "bos_id": BOS, "eos_id": EOS}
    cells: dict[str, Any] = {"mask_id": MASK, "pad_id": PAD, "eos_id": EOS, "suppressed_ids": SPECIAL}
    if family == "arlm":
        return Parts(
            ARLM(**size.arguments()),
            ARLMLoss(),
            ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=EOS),
            ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=max_length),
            ARLMPredictor(pad_id=PAD, eos_id=EOS, suppressed_ids=SPECIAL, temperature=0.0),
        )
    if family == "mlm":
        return Parts(
            MLM(**size.arguments()),
            MLMLoss(**cells),
            MLMCollator(**ids, target_length=max_length),
            MLMPromptCollator(**ids, target_length=max_length),
            MLMPredictor(**cells, sampler="confidence", temperature=0.0),
        )
    if family == "mdlm":
        return Parts(
            MDLMRotary(**size.arguments()),
            MDLMLoss(**cells),
            MDLMCollator(**ids, schedule=LogLinear(), target_length=max_length, min_time=0.4),
            MDLMPromptCollator(**ids, target_length=max_length),
            MDLMPredictor(**cells, schedule=LogLinear(), sampler="confidence", temperature=0.0),
        )
    return _of_any_length(family, size, max_length, greedy=True)


def _of_any_length(family: str, size: Size, max_length: int, *, greedy: bool) -> Parts:
    """The families that insert; ``greedy`` is for paths, with the settings of star_tiny."""
    temperature = 0.0 if greedy else 1.0
    if family == "ilm":
        ids = {"pad_id": PAD, "cls_id": CLS, "bos_id": BOS}
        return Parts(
            ILM(**size.arguments()),
            ILMLoss(suppressed_ids=SPECIAL),
            ILMCollator(**ids),
            ILMPromptCollator(**ids, max_length=max_length),
            ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, temperature=temperature),
        )
    if family != "flexmdm":
        raise ValueError(f"family must be one of {', '.join(NAMES)}, got {family!r}")
    insertion, unmasking = (0.5, 3.0) if greedy else (1.0, 1.0)
    interpolant = Interpolant(
        insertion=Polynomial(exponent=insertion), unmasking=Polynomial(exponent=unmasking)
    )
    places = {"pad_id": PAD, "mask_id": MASK, "bos_id": BOS}
    return Parts(
        FlexMDM(**size.arguments(), max_length=max_length, head="distribution" if greedy else "expectation"),
        FlexMDMLoss(mask_id=MASK, suppressed_ids=SPECIAL, targets="posterior" if greedy else "drawn"),
        FlexMDMCollator(
            interpolant=interpolant,
            **places,
            time_power=1.0 if greedy else 2.0,
            unmasking_weight="one" if greedy else "hazard",
        ),
        FlexMDMPromptCollator(**places, max_length=max_length),
        FlexMDMPredictor(
            interpolant=interpolant,
            mask_id=MASK,
            pad_id=PAD,
            suppressed_ids=SPECIAL,
            num_steps=128,
            order="top_prob" if greedy else "random",
            temperature=temperature,
        ),
    )


def texts(number: int, rows: int, length: int, vocab_size: int) -> list[dict[str, Any]]:
    """The examples of batch ``number``: texts of random tokens."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(FIRST, vocab_size, (rows, length), generator=generator)
    places = number * rows + torch.arange(rows)
    seeds = row_seeds(0, 0, places).tolist()
    return [
        {"seed": seed, "place": place, "target_ids": row}
        for seed, place, row in zip(seeds, places.tolist(), ids, strict=True)
    ]


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def mean_loss(parts: Parts, network: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss of an optimizer step."""
    output = parts.loss(network, batch)
    loss: Tensor = output.loss_sum / output.loss_count.clamp(min=1)
    return loss
