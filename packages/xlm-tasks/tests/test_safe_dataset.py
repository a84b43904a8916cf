import importlib
from pathlib import Path
from types import ModuleType

import datasets
import pytest
import safe
from rdkit import Chem

from xlm.tasks.safe import (
    SafeTokenizer,
    attachment_points,
    encode_fragments,
    encode_safe,
    encode_smiles,
    given_fragments,
    nci_rows,
    published_rows,
)
from xlm.tasks.safe.chemistry import safe_to_smiles, smiles_to_safe
from xlm.tasks.safe.dataset import FragmentTask

# Imatinib: a benzamide in the middle, a piperazine at one end, a pyridine at the other.
IMATINIB = "Cc1ccc(NC(=O)c2ccc(CN3CCN(C)CC3)cc2)cc1Nc1nccc(-c2cccnc2)n1"
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture(scope="module")
def tokenizer() -> SafeTokenizer:
    return SafeTokenizer()


def smiles_of(count: int) -> list[str]:
    return [row["input"] for row in nci_rows("train", num_rows={"train": count})]


def test_molecules_survive_the_way_through_ids(tokenizer: SafeTokenizer) -> None:
    kept = 0
    for smiles in [ASPIRIN, IMATINIB, *smiles_of(120)]:
        encoded = encode_smiles({"input": smiles}, tokenizer)
        if encoded is not None:
            kept += 1
            back = safe_to_smiles(tokenizer.decode(encoded["target_ids"]))
            assert back == Chem.MolToSmiles(Chem.MolFromSmiles(smiles))
    assert kept > 118


@pytest.mark.parametrize("smiles", ["*C1CCN(Cc2ccccc2)CC1", "[*:1]CC", "*", "C.C.*"])
def test_a_molecule_that_its_safe_string_would_not_give_back_is_refused(
    smiles: str, tokenizer: SafeTokenizer
) -> None:
    assert Chem.MolFromSmiles(smiles) is not None
    assert encode_smiles({"input": smiles}, tokenizer) is None
    assert encode_fragments({"input": smiles}, tokenizer, task="motif", from_smiles=True) is None


@pytest.mark.parametrize("smiles", ["C[2H]", "[13CH4]", "F/C=C/F", "C[C@H](N)C(=O)O", "[Na+].[Cl-]"])
def test_isotopes_stereo_bonds_centres_and_salts_come_back(smiles: str, tokenizer: SafeTokenizer) -> None:
    text = smiles_to_safe(smiles)
    assert text is not None
    assert safe_to_smiles(text) == Chem.CanonSmiles(smiles)


@pytest.mark.parametrize("text", ["[MASK]CC", "C[PAD]", "[EOS]", "C C", "C€C", "C%1"])
def test_a_string_that_is_not_what_its_ids_decode_to_is_refused(text: str, tokenizer: SafeTokenizer) -> None:
    assert encode_safe({"input": text}, tokenizer) is None


@pytest.mark.parametrize("smiles", ["C1CCCCC1", "c1ccccc1", "O", "CCO"])
def test_a_molecule_that_cannot_be_cut_is_kept_as_one_fragment(smiles: str, tokenizer: SafeTokenizer) -> None:
    encoded = encode_smiles({"input": smiles}, tokenizer)
    assert encoded is not None
    text = tokenizer.decode(encoded["target_ids"])
    assert "." not in text
    assert safe_to_smiles(text) == Chem.MolToSmiles(Chem.MolFromSmiles(smiles))


def test_molecules_that_safe_refuses_to_cut_bear_a_note(tokenizer: SafeTokenizer) -> None:
    noted: list[str] = []
    refused_by_safe: list[str] = []
    for smiles in ["CCO.O", "c1ccccc1.Cl", ASPIRIN + ".Cl", *smiles_of(150)]:
        encoded = encode_smiles({"input": smiles}, tokenizer)
        if encoded is None:
            continue
        if "note" in encoded:
            noted.append(smiles)
        try:
            safe.encode(smiles)
        except safe.SAFEFragmentationError:
            refused_by_safe.append(smiles)
    assert noted == refused_by_safe
    assert len(noted) > 20


@pytest.mark.parametrize("text", ["", "C1CC", "no molecule", "C(C)(C)(C)(C)(C)C"])
def test_what_is_no_molecule_is_refused(text: str, tokenizer: SafeTokenizer) -> None:
    assert encode_smiles({"input": text}, tokenizer) is None


def test_strings_with_unknown_tokens_are_refused(tokenizer: SafeTokenizer) -> None:
    assert encode_safe({"input": "C[Og]C"}, tokenizer) is None
    encoded = encode_safe({"molecule": " CCO\n"}, tokenizer, column="molecule")
    assert encoded is not None
    assert tokenizer.decode(encoded["target_ids"]) == "CCO"


# ---- fragments ----------------------------------------------------------------------------------------


def test_attachment_points_are_the_numbers_left_open() -> None:
    assert attachment_points("c1ccccc1") == set()
    assert attachment_points("c13ccccc14") == {"3", "4"}
    assert attachment_points("N%10CC%11CC%10") == {"11"}
    assert attachment_points("[13C]5") == {"5"}


def test_each_task_gives_its_kind_of_fragment() -> None:
    fragments = ["c13ccccc14", "CC2=O", "C4(=O)O", "O23"]
    assert given_fragments(fragments, "scaffold") == [0]
    assert given_fragments(fragments, "motif") == [2]
    assert given_fragments(fragments, "linker") == [2, 1]
    assert given_fragments(["C1", "N1"], "linker") == []
    assert given_fragments(["CCO"], "motif") == []


@pytest.mark.parametrize("task", ["motif", "linker", "scaffold"])
@pytest.mark.parametrize("smiles", [ASPIRIN, IMATINIB])
def test_given_fragments_stand_in_front_and_the_molecule_stays_the_same(
    task: FragmentTask, smiles: str, tokenizer: SafeTokenizer
) -> None:
    encoded = encode_fragments({"input": smiles}, tokenizer, task=task, from_smiles=True)
    assert encoded is not None
    assert safe_to_smiles(tokenizer.decode(encoded["target_ids"])) == Chem.CanonSmiles(smiles)
    num_given = sum(encoded["fixed"])
    assert encoded["fixed"] == [True] * num_given + [False] * (len(encoded["target_ids"]) - num_given)
    given = tokenizer.decode(encoded["target_ids"][:num_given])
    assert given.endswith(".")
    text = smiles_to_safe(smiles)
    assert text is not None
    assert set(given.rstrip(".").split(".")) <= set(text.split("."))
    assert given.count(".") == {"motif": 1, "linker": 2, "scaffold": 1}[task]
    molecule = Chem.MolFromSmiles(smiles)
    for fragment in given.rstrip(".").split("."):
        assert molecule.HasSubstructMatch(Chem.MolFromSmiles(safe_to_smiles(fragment)))


def test_molecules_without_such_fragments_are_refused(tokenizer: SafeTokenizer) -> None:
    assert encode_fragments({"input": "CCO"}, tokenizer, task="motif", from_smiles=True) is None
    assert encode_fragments({"input": "C[Og]1.C1"}, tokenizer, task="motif") is None


# ---- sources ------------------------------------------------------------------------------------------


def test_nci_splits_share_no_row_and_are_as_long_as_they_say() -> None:
    numbers = {"train": 5000, "val": 5000, "test": 5000}
    rows = {split: [row["input"] for row in nci_rows(split, num_rows=numbers)] for split in numbers}
    assert {split: len(found) for split, found in rows.items()} == {"train": 4000, "val": 500, "test": 499}
    assert len(list(nci_rows("val", num_rows={"val": 3}))) == 3
    with pytest.raises(ValueError, match=r"unknown split 'dev'.*train"):
        list(nci_rows("dev", num_rows=numbers))


@pytest.mark.parametrize("streaming", [False, True])
def test_published_rows_are_read_from_the_published_layout(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, count in {"train": 30, "validation": 9, "test": 9}.items():
        rows = [{"input": smiles_to_safe(smiles), "mc_labels": [0.1, 0.2]} for smiles in smiles_of(count)]
        for part in range(3):
            file = tmp_path / "data" / f"{split}-{part:05}-of-00003-abc.parquet"
            datasets.Dataset.from_list(rows[part::3]).to_parquet(file)
    files = {
        "train": "data/train-*.parquet",
        "validation": "data/validation-00000-of-*.parquet",
        "test": "data/test-00000-of-*.parquet",
    }
    found = {
        split: [
            row["input"]
            for row in published_rows(
                split,
                path=str(tmp_path),
                data_files=files,
                num_rows={"validation": 2, "test": 50},
                streaming=streaming,
            )
        ]
        for split in files
    }
    assert {split: len(rows) for split, rows in found.items()} == {"train": 30, "validation": 2, "test": 3}
    assert set(found["test"]) <= set(found["train"])


def test_without_the_extra_the_error_names_it(
    tokenizer: SafeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, package: str | None = None) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"molecules need rdkit.*xlm-tasks\[safe\]"):
        encode_smiles({"input": "CCO"}, tokenizer)
    assert encode_safe({"input": "CCO"}, tokenizer) is not None
