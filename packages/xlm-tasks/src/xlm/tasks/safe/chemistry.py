"""What the task needs of rdkit and safe-mol, which come with an extra and are imported when they are used."""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

EXTRA = 'uv pip install "xlm-tasks[safe]"'


def load(module: str) -> ModuleType:
    """Import a module of the extra.

    Raises:
        ImportError: If it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"molecules need {error.name}, which comes with an extra: {EXTRA}") from error


def smiles_to_safe(smiles: str) -> str | None:
    """The canonical SAFE string of a molecule, cut at its BRICS bonds.

    A molecule without such a bond becomes a single fragment, so it is kept.

    Returns:
        None for what is no molecule, and for a molecule that the string would not give back: SAFE reads an
        atom ``*`` as an attachment point, for example.
    """
    chem, rd_base, safe = load("rdkit.Chem"), load("rdkit.rdBase"), load("safe")
    with rd_base.BlockLogs():
        molecule = chem.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            return None
        try:
            text = cast("str", safe.encode(smiles, canonical=True, allow_empty=True))
        except safe.SAFEEncodeError:
            return None
        return text if safe_to_smiles(text) == chem.MolToSmiles(molecule) else None


def safe_to_smiles(text: str) -> str | None:
    """The canonical SMILES of a SAFE string; attachment points that are left open are dropped.

    Returns:
        None where the string is no molecule.
    """
    if not text:
        return None
    smiles = cast("str | None", load("safe").decode(text, canonical=True, ignore_errors=True))
    return smiles or None


def repaired_smiles(text: str) -> str | None:
    """The molecule of a generated SAFE string as published work reads it (GenMol, arXiv:2501.06158).

    Fragments that are no molecule by themselves are left out, the rest is decoded, and of a result in several
    parts the one with the longest SMILES is taken (the last of several).
    """
    fragments = [fragment for fragment in text.split(".") if safe_to_smiles(fragment) is not None]
    smiles = safe_to_smiles(".".join(fragments))
    if smiles is None:
        return None
    largest = sorted(smiles.split("."), key=len)[-1]
    molecule = load("rdkit.Chem").MolFromSmiles(largest)
    return None if molecule is None else cast("str", load("rdkit.Chem").MolToSmiles(molecule))


def drug_likeness(smiles: str) -> tuple[float, float]:
    """QED (0 to 1, higher is better) and synthetic accessibility (1 to 10, lower is easier)."""
    molecule = load("rdkit.Chem").MolFromSmiles(smiles)
    qed = cast("float", load("rdkit.Chem.QED").qed(molecule))
    return qed, cast("float", load("rdkit.Contrib.SA_Score.sascorer").calculateScore(molecule))


def fingerprint_bytes(smiles: str) -> bytes:
    """The Morgan fingerprint of radius 2 as 2048 bits."""
    generator = load("rdkit.Chem.rdFingerprintGenerator").GetMorganGenerator(radius=2, fpSize=2048)
    bits: Any = generator.GetFingerprintAsNumPy(load("rdkit.Chem").MolFromSmiles(smiles))
    return cast("bytes", load("numpy").packbits(bits).tobytes())


def contains(smiles: str, fragments: Sequence[str]) -> bool:
    """Whether the molecule has each fragment (SMILES) as a substructure."""
    chem = load("rdkit.Chem")
    molecule = chem.MolFromSmiles(smiles)
    return all(molecule.HasSubstructMatch(chem.MolFromSmiles(fragment)) for fragment in fragments)
