"""Molecules as rows, and their form as ids: whole strings, or strings of which some fragments are given."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NotRequired, Protocol, TypedDict, cast

import datasets

from xlm.tasks.safe.chemistry import load, smiles_to_safe
from xlm.tasks.safe.tokenizer import split_safe

FragmentTask = Literal["motif", "linker", "scaffold"]
SPLITS = ("train", "val", "test")
UNCUT = "without a bond that SAFE cuts, kept whole"
"""Note on a molecule of which no two fragments are bound to one another."""


class EncodedMolecule(TypedDict):
    """A SAFE string as ids, without special tokens."""

    target_ids: list[int]
    note: NotRequired[str]


class EncodedFragments(EncodedMolecule):
    """A SAFE string whose first fragments are given."""

    fixed: list[bool]


class Encoder(Protocol):
    """The part of a tokenizer that is needed here."""

    @property
    def unk_id(self) -> int | None:
        """Id of what is not in the vocabulary."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...


def nci_rows(split: str, *, num_rows: Mapping[str, int]) -> Iterator[dict[str, str]]:
    """SMILES of the NCI's set (4999, with rdkit) as rows with the column ``input``.

    Of ten molecules in succession the ninth is for val, the tenth for test.

    Args:
        split: "train", "val" or "test".
        num_rows: Maximum rows of each split; there are 4000, 500 and 499.

    Raises:
        ImportError: If rdkit is not installed.
        ValueError: If the split is unknown.
    """
    if split not in SPLITS or split not in num_rows:
        raise ValueError(f"unknown split {split!r}: the splits are {', '.join(SPLITS)}")
    folder = Path(str(load("rdkit.RDConfig").RDDataDir))
    lines = (folder / "NCI" / "first_5K.smi").read_text().splitlines()
    chosen = [line for n, line in enumerate(lines) if {8: "val", 9: "test"}.get(n % 10, "train") == split]
    for line in chosen[: num_rows[split]]:
        yield {"input": line.split()[0]}


def published_rows(
    split: str,
    *,
    path: str,
    local: str | None = None,
    revision: str | None = None,
    data_files: Mapping[str, str] | None = None,
    num_rows: Mapping[str, int] | None = None,
    streaming: bool = False,
) -> Iterable[Mapping[str, object]]:
    """The published SAFE strings, with the columns ``input`` and ``mc_labels``.

    Args:
        split: "train", "validation" or "test".
        path: Id on the Hub, or a local folder in its layout.
        local: Local folder that is read instead of ``path``; None for none.
        revision: Revision of the Hub's repository.
        data_files: Files of each split; None for all.
        num_rows: Number of first rows of these splits; the others are complete.
        streaming: Whether rows are read on demand.
    """
    files = None if data_files is None else dict(data_files)
    rows = datasets.load_dataset(
        local or path, revision=revision, data_files=files, split=split, streaming=streaming
    )
    assert isinstance(rows, datasets.Dataset | datasets.IterableDataset)
    limit = (num_rows or {}).get(split)
    if limit is not None:
        rows = rows.take(min(limit, len(rows)) if isinstance(rows, datasets.Dataset) else limit)
    return cast("Iterable[Mapping[str, object]]", rows)


def encode_safe(
    row: Mapping[str, str], tokenizer: Encoder, *, column: str = "input"
) -> EncodedMolecule | None:
    """Write a SAFE string as ids; with a note if there was no bond to cut.

    Returns:
        None, so that the row is refused and counted, if the string has a token that the vocabulary lacks, or
        is not what its ids decode to.
    """
    text = row[column].strip()
    ids = tokenizer.encode(text)
    if _is_lost(ids, text, tokenizer):
        return None
    if any(attachment_points(fragment) for fragment in text.split(".")):
        return {"target_ids": ids}
    return {"target_ids": ids, "note": UNCUT}


def encode_smiles(
    row: Mapping[str, str], tokenizer: Encoder, *, column: str = "input"
) -> EncodedMolecule | None:
    """Write a SMILES string as the ids of its SAFE string.

    A molecule that SAFE cannot cut is kept whole, and counted by its note. Refused are strings that are no
    molecule, and molecules that their SAFE string does not give back.

    Raises:
        ImportError: If rdkit or safe-mol is not installed.
    """
    text = smiles_to_safe(row[column].strip())
    return None if text is None else encode_safe({"text": text}, tokenizer, column="text")


def encode_fragments(
    row: Mapping[str, str],
    tokenizer: Encoder,
    *,
    task: FragmentTask,
    column: str = "input",
    from_smiles: bool = False,
) -> EncodedFragments | None:
    """Write a molecule as a string that begins with the given fragments.

    In SAFE the order of fragments has no meaning, so the given ones are always first; models conditioned on
    the left context only can then do the same task. See ``given_fragments`` for the given fragments.

    Returns:
        None where the molecule has no such fragments, or is none, or is not what its ids decode to.
    """
    text = smiles_to_safe(row[column].strip()) if from_smiles else row[column].strip()
    if text is None:
        return None
    fragments = text.split(".")
    given = given_fragments(fragments, task)
    if not given:
        return None
    others = [fragment for index, fragment in enumerate(fragments) if index not in given]
    start = tokenizer.encode(".".join(fragments[index] for index in given) + ".")
    rest = tokenizer.encode(".".join(others))
    reordered = ".".join(fragments[index] for index in given) + "." + ".".join(others)
    if _is_lost(start + rest, reordered, tokenizer):
        return None
    return {"target_ids": start + rest, "fixed": [True] * len(start) + [False] * len(rest)}


def _is_lost(ids: Sequence[int], text: str, tokenizer: Encoder) -> bool:
    """Whether the ids are not the whole of the text."""
    return tokenizer.unk_id in ids or tokenizer.decode(ids) != text


def given_fragments(fragments: Sequence[str], task: FragmentTask) -> list[int]:
    """Which fragments of a molecule are given, largest first (by tokens; the first of equal ones).

    - ``motif``: the largest fragment with one attachment point, to be extended.
    - ``linker``: the two largest fragments with one attachment point each, not attached to one another: what
      connects them is to be designed.
    - ``scaffold``: the largest fragment with at least two attachment points, to be decorated.

    Returns:
        Their indices; none where the molecule has no such fragments.
    """
    points = [attachment_points(fragment) for fragment in fragments]
    by_size = sorted(range(len(fragments)), key=lambda index: -len(split_safe(fragments[index])))
    if task == "scaffold":
        return [index for index in by_size if len(points[index]) > 1][:1]
    ends = [index for index in by_size if len(points[index]) == 1]
    if task == "motif":
        return ends[:1]
    for place, first in enumerate(ends):
        for second in ends[place + 1 :]:
            if points[first] != points[second]:
                return [first, second]
    return []


def attachment_points(fragment: str) -> set[str]:
    """Numbers that are opened in the fragment and not closed there: its bonds to other fragments."""
    open_numbers: set[str] = set()
    for token in split_safe(fragment):
        if number := re.fullmatch(r"%?\(?([0-9]+)\)?", token):
            open_numbers ^= {number[1]}
    return open_numbers
