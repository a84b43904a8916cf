"""Metrics of generated molecules; see the README for the definitions."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xlm.tasks.metrics import Generation, Score, ScoreRatios
from xlm.tasks.safe.chemistry import (
    contains,
    drug_likeness,
    fingerprint_bytes,
    repaired_smiles,
    safe_to_smiles,
)
from xlm.tasks.safe.tokenizer import split_safe

MIN_QED = 0.6
MAX_SA = 4.0
_WORDS = 34
"""Width of a molecule's record: identity, quality, and the 2048 bits of its fingerprint in words of 64."""
_ROWS = 1024
"""Rows of the similarity matrix that are in memory at a time."""


class DeNovoMetrics:
    """Accumulates ``validity``, ``strict_validity``, ``uniqueness``, ``quality`` and ``diversity``.

    Attributes:
        sums: Numbers of generations, of valid ones, of strictly valid ones.
        lists: One record for each valid molecule (molecules, 34) int64; processes append theirs to one
            another's.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all generations."""
        names = ("generated", "valid", "strictly_valid")
        self.sums = {name: torch.zeros((), dtype=torch.int64) for name in names}
        self.lists = {"molecules": torch.zeros((0, _WORDS), dtype=torch.int64)}

    def update(self, generations: Sequence[Generation]) -> None:
        """Count more generations."""
        records = [self.lists["molecules"]]
        for generation in generations:
            self.sums["generated"] += 1
            self.sums["strictly_valid"] += safe_to_smiles(generation["text"]) is not None
            smiles = repaired_smiles(generation["text"])
            if smiles is not None:
                self.sums["valid"] += 1
                records.append(_record(smiles))
        self.lists["molecules"] = torch.cat(records)

    def compute(self) -> dict[str, float]:
        """The metrics by name, each in [0, 1]; 0.0 for no generations."""
        generated, valid = max(1, int(self.sums["generated"])), int(self.sums["valid"])
        _, first = np.unique(self.lists["molecules"][:, 0].numpy(), return_index=True)
        unique = self.lists["molecules"].numpy()[first]
        return {
            "validity": valid / generated,
            "strict_validity": int(self.sums["strictly_valid"]) / generated,
            "uniqueness": len(unique) / max(1, valid),
            "quality": int(unique[:, 1].sum()) / generated,
            "diversity": mean_distance(np.ascontiguousarray(unique[:, 2:]).view(np.uint8)),
        }


def mean_distance(fingerprints: npt.NDArray[np.uint8]) -> float:
    """1 - Tanimoto similarity, averaged over the pairs of rows (rows, bytes); 0.0 without a pair."""
    bits = np.unpackbits(fingerprints, axis=1).astype(np.float32)
    sizes = bits.sum(axis=1)
    similarity = 0.0
    for start in range(0, len(bits), _ROWS):
        common = bits[start : start + _ROWS] @ bits.T
        either = sizes[start : start + _ROWS, None] + sizes - common
        similarity += float(np.divide(common, either, where=either > 0, out=np.ones_like(common)).sum())
    pairs = len(bits) * (len(bits) - 1)
    return 1 - (similarity - len(bits)) / pairs if pairs else 0.0


def _record(smiles: str) -> Tensor:
    """(1, 34) int64: what is recorded of a molecule."""
    qed, accessibility = drug_likeness(smiles)
    identity = hashlib.blake2b(smiles.encode(), digest_size=8).digest()
    is_good = int(qed >= MIN_QED and accessibility <= MAX_SA)
    words = np.frombuffer(identity + is_good.to_bytes(8, "little") + fingerprint_bytes(smiles), dtype="<i8")
    return torch.from_numpy(words.astype(np.int64))[None]


def given_fragments_kept(generation: Generation) -> tuple[int, int]:
    """Whether the molecule has the given fragments as substructures, out of 1; an invalid one has none."""
    smiles = repaired_smiles(generation["text"])
    return int(smiles is not None and contains(smiles, _given_smiles(generation))), 1


def given_tokens_kept(generation: Generation) -> tuple[int, int]:
    """Whether the generated string begins with the given tokens, out of 1."""
    num_given = sum(generation.get("fixed", []))
    return int(generation["ids"][:num_given] == generation["reference_ids"][:num_given]), 1


def _given_smiles(generation: Generation) -> list[str]:
    """The given fragments, which stand in front of the reference, without their attachment points."""
    tokens = split_safe(generation["reference"])[: sum(generation.get("fixed", []))]
    decoded = [safe_to_smiles(fragment) for fragment in "".join(tokens).split(".")]
    return [smiles for smiles in decoded if smiles]


class FragmentMetrics(ScoreRatios):
    """Accumulates ``fragments_kept`` and ``given_kept``; the de novo metrics measure the molecules."""

    SCORES: Mapping[str, Score] = {
        "fragments_kept": given_fragments_kept,
        "given_kept": given_tokens_kept,
    }
