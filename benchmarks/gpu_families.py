"""The families with all parts of a plain loop, without the harness, and what their steps count."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xlm.modules import LogLinear, Polynomial, row_seeds
from xlm_arlm import ARLM, ARLMCollator, ARLMLoss, ARLMPredictor, ARLMPromptCollator
from xlm_bd3lm import BD3LMCollator, BD3LMDiT, BD3LMLoss, BD3LMPredictor, BD3LMPromptCollator
from xlm_bd3lm.streams_bd3lm import block_mask
from xlm_did import DID, DIDCollator, DIDLoss, DIDPredictor, DIDPromptCollator
from xlm_editflow import (
    EditFlow,
    EditFlowCollator,
    EditFlowLoss,
    EditFlowPredictor,
    EditFlowPromptCollator,
)
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
from xlm_udlm import UDLMCollator, UDLMDiT, UDLMLoss, UDLMPredictor, UDLMPromptCollator

NAMES = ("arlm", "mlm", "ilm", "did", "editflow", "mdlm", "flexmdm")
TEXT_NAMES = (*NAMES, "bd3lm", "bd3lm_flex", "udlm")
"""Families with the settings of long texts, those of NAMES also of star graphs; bd3lm_flex: FlexAttention."""
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
    if family in ("bd3lm", "bd3lm_flex"):
        blocks: dict[str, Any] = ids | {"block_length": 16}
        return Parts(
            BD3LMDiT(**size.arguments()),
            BD3LMLoss(**cells, flex_attention=family == "bd3lm_flex"),
            BD3LMCollator(**blocks),
            BD3LMPromptCollator(**blocks, default_length=max_length),
            BD3LMPredictor(**cells, schedule=LogLinear(), sampler="first_hitting", block_length=16),
        )
    if family == "udlm":
        tokens: dict[str, Any] = {
            "vocab_size": size.vocab_size, "pad_id": PAD, "eos_id": None, "suppressed_ids": SPECIAL,
        }  # fmt: skip
        return Parts(
            UDLMDiT(**size.arguments()),
            UDLMLoss(**tokens),
            UDLMCollator(**tokens, bos_id=None, schedule=LogLinear()),
            UDLMPromptCollator(pad_id=PAD, bos_id=None, eos_id=None, default_length=max_length),
            UDLMPredictor(**tokens, schedule=LogLinear(), sampler="ancestral"),
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
    if family == "did":
        ids = {"pad_id": PAD, "cls_id": CLS, "bos_id": BOS}
        return Parts(
            DID(**size.arguments(), max_missing=max_length),
            DIDLoss(suppressed_ids=SPECIAL),
            DIDCollator(**ids, max_length=max_length),
            DIDPromptCollator(**ids, max_length=max_length),
            DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL, temperature=temperature),
        )
    if family == "editflow":
        ids = {"pad_id": PAD, "bos_id": BOS}
        return Parts(
            EditFlow(**size.arguments()),
            EditFlowLoss(suppressed_ids=SPECIAL),
            EditFlowCollator(**ids, max_length=max_length),
            EditFlowPromptCollator(**ids, max_length=max_length),
            EditFlowPredictor(
                pad_id=PAD,
                suppressed_ids=SPECIAL,
                num_steps=None if greedy else 64,
                temperature=temperature,
            ),
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
            rank="top_prob" if greedy else "random",
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


# ---- operations of a step, peak rates and kernels of the device -------------------------------------


def scored_cells(family: str, batch: Mapping[str, Any]) -> int:
    """Cells at which the output layer is needed."""
    name = {
        "arlm": "target_row",
        "ilm": "scored_row",
        "did": "scored_row",
        "editflow": "insert_row",
        "udlm": "cell_row",
    }.get(family, "masked_row")
    return len(batch[name])


def read_cells(family: str, batch: Mapping[str, Any], tokens: int) -> int:
    """Cells whose hidden states the heads read, of so many tokens."""
    if family == "editflow":
        return tokens
    if family == "flexmdm":
        return len(batch["slot_row"])
    of_cls = len(batch["input_ids"]) if family in ("ilm", "did") else 0
    return min(scored_cells(family, batch) + of_cls, tokens)


def training_flops(family: str, model: nn.Module, batch: Mapping[str, Any]) -> float:
    """Floating-point operations of the matrix products of one step, forward (1) and backward (2).

    6 for each weight of a block and real token, 12 d L^2 for the attention of a block and a row of L tokens
    (half of it in a causal network, which needs no more; in bd3lm the pairs of its mask), 6 d V for each cell
    whose logits are needed. The last block needs keys and values of all tokens, and the rest for the cells
    that the heads read.
    Recomputation and padding are not counted.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1).cpu()
    per_token = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".blocks." in name and "modulation" not in name
    )
    blocks = sum(name.endswith(".attention") for name, _ in model.named_modules())
    d_model, vocab_size = model.token_head.in_features, model.token_head.out_features
    squares = float((lengths.double() ** 2).sum()) * (0.5 if family == "arlm" else 1.0)
    tokens = int(lengths.sum())
    if "clean_blocks" in batch:
        blocks_of = batch["cell_blocks"].cpu(), batch["clean_blocks"].cpu()
        tokens, squares = sum(map(torch.numel, blocks_of)), float(block_mask(*blocks_of).sum())
    unread = 1 - read_cells(family, batch, tokens) / tokens
    spared = (per_token / blocks - 2 * d_model**2) * unread
    return (
        6.0 * (per_token - spared) * tokens
        + 12.0 * (blocks - unread) * d_model * squares
        + 6.0 * d_model * vocab_size * scored_cells(family, batch)
    )


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Mean seconds of one repeat, with synchronisations before and after."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    """Synchronise with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops(device: torch.device, size: int) -> float:
    """Operations a second of a bfloat16 product of two random square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    multiply = lambda: torch.mm(left, right, out=out)  # noqa: E731
    seconds_of(multiply, device, 3)
    return 2.0 * size**3 / seconds_of(multiply, device, 10)


def copy_bytes(device: torch.device, megabytes: int) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    copy = lambda: target.copy_(source)  # noqa: E731
    seconds_of(copy, device, 3)
    return 2.0 * source.nbytes / seconds_of(copy, device, 10)


def attention_kernels(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Names of the attention kernels, and the five slowest kernels, of a function."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work()
        wait(device)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        on_device = event.self_device_time_total if cuda else event.self_cpu_time_total
        is_kernel = not cuda or event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel and on_device > 0 and not event.is_user_annotation:
            times[event.key] = times.get(event.key, 0.0) + on_device
    total = sum(times.values())
    marks = ("flash", "fmha", "attention", "sdpa", "efficient")
    ordered = sorted(times, key=lambda name: -times[name])
    return {
        "attention": [shorten(name) for name in ordered if any(mark in name.lower() for mark in marks)][:4],
        "longest": {shorten(name): round(times[name] / total, 3) for name in ordered[:8]},
    }


def shorten(name: str) -> str:
    """A kernel's name without its arguments."""
    return name.removeprefix("void ").split("(")[0].split("<")[0][:70]


def gradient_norm(model: nn.Module) -> float:
    """Total gradient norm."""
    gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
