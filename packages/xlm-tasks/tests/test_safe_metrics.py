import pickle
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import QED, rdFingerprintGenerator
from safe import SAFESplitter
from transformers import AutoTokenizer

from xlm.tasks.metrics import Generation
from xlm.tasks.safe import (
    PATTERN,
    DeNovoMetrics,
    FragmentMetrics,
    SafeTokenizer,
    encode_fragments,
    make_vocabulary,
    mean_distance,
    nci_rows,
    split_safe,
)
from xlm.tasks.safe.chemistry import (
    drug_likeness,
    fingerprint_bytes,
    repaired_smiles,
    safe_to_smiles,
    smiles_to_safe,
)

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
PARACETAMOL = "CC(=O)Nc1ccc(O)cc1"
HEXANE = "CCCCCC"


def generation(text: str) -> Generation:
    return {"prompt_ids": [], "ids": [], "reference_ids": [], "prompt": "", "text": text, "reference": ""}


def scores(*texts: str) -> dict[str, float]:
    metrics = DeNovoMetrics()
    metrics.update([generation(text) for text in texts])
    return metrics.compute()


def safe_of(smiles: str) -> str:
    text = smiles_to_safe(smiles)
    assert text is not None
    return text


def test_known_values_of_known_molecules() -> None:
    # Bickerton et al. 2012 (arXiv 1204.4114 has the method) give aspirin about 0.55, rdkit computes 0.550.
    qed, accessibility = drug_likeness(ASPIRIN)
    assert qed == pytest.approx(0.550, abs=0.001)
    assert accessibility == pytest.approx(1.58, abs=0.01)
    assert QED.qed(Chem.MolFromSmiles(PARACETAMOL)) == drug_likeness(PARACETAMOL)[0]


def test_each_metric_has_its_own_denominator() -> None:
    """Six generations: two the same, one other, one too greasy, one to be repaired, one hopeless."""
    good, poor = "CC1CCN(C(=O)c2ccc(F)cc2)CC1", HEXANE
    assert drug_likeness(good)[0] >= 0.6
    assert drug_likeness(poor)[0] < 0.6
    found = scores(
        safe_of(good), safe_of(good), safe_of(PARACETAMOL), poor, safe_of(ASPIRIN) + ".C1CC((", "(("
    )
    assert found["validity"] == 5 / 6
    assert found["strict_validity"] == 4 / 6
    assert found["uniqueness"] == 4 / 5
    good_ones = sum(
        drug_likeness(s)[0] >= 0.6 and drug_likeness(s)[1] <= 4 for s in (good, PARACETAMOL, ASPIRIN)
    )
    assert found["quality"] == good_ones / 6


def test_diversity_agrees_with_another_computation() -> None:
    smiles = sorted({Chem.CanonSmiles(row["input"]) for row in nci_rows("test", num_rows={"test": 40})})
    smiles = [s for s in smiles if "." not in s and smiles_to_safe(s) is not None]
    with Chem.rdBase.BlockLogs():
        generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
        prints = [generator.GetFingerprint(Chem.MolFromSmiles(s)) for s in smiles]
    distances = [1 - DataStructs.TanimotoSimilarity(a, b) for a, b in combinations(prints, 2)]
    rows = np.stack([np.frombuffer(fingerprint_bytes(s), dtype=np.uint8) for s in smiles])
    assert mean_distance(rows) == pytest.approx(np.mean(distances), rel=1e-6)
    assert scores(*map(safe_of, smiles))["diversity"] == pytest.approx(np.mean(distances), rel=1e-6)


def test_diversity_of_few_molecules() -> None:
    assert scores(HEXANE)["diversity"] == 0.0
    assert scores(HEXANE, HEXANE)["diversity"] == 0.0
    assert scores() == dict.fromkeys(scores(), 0.0)


def test_repair_drops_fragments_and_takes_the_largest_part() -> None:
    text = safe_of(ASPIRIN)
    assert repaired_smiles(text) == Chem.CanonSmiles(ASPIRIN)
    assert repaired_smiles(text + ".C(C") == Chem.CanonSmiles(ASPIRIN)
    assert repaired_smiles("CCO.c1ccccc1CC.C") == "CCc1ccccc1"
    assert repaired_smiles("((.))") is None
    assert repaired_smiles("") is None
    assert safe_to_smiles(text + ".C(C") is None


def test_states_of_two_processes_are_joined() -> None:
    first, second, both = DeNovoMetrics(), DeNovoMetrics(), DeNovoMetrics()
    one, other = (
        [generation(safe_of(ASPIRIN)), generation("((")],
        [generation(safe_of(s)) for s in (ASPIRIN, HEXANE)],
    )
    first.update(one)
    second.update(other)
    both.update([*one, *other])
    for name, value in second.sums.items():
        first.sums[name] = first.sums[name] + value
    first.lists = {
        "molecules": second.lists["molecules"].new_tensor(
            [*first.lists["molecules"].tolist(), *second.lists["molecules"].tolist()]
        )
    }
    assert first.compute() == both.compute()
    assert both.compute()["uniqueness"] == 2 / 3


# ---- fragments ----------------------------------------------------------------------------------------


def answer(text: str, *, task: str = "linker") -> Generation:
    tokenizer = SafeTokenizer()
    smiles = "Cc1ccc(NC(=O)c2ccc(CN3CCN(C)CC3)cc2)cc1Nc1nccc(-c2cccnc2)n1"
    encoded = encode_fragments({"input": smiles}, tokenizer, task="linker", from_smiles=True)
    assert encoded is not None
    num_given = sum(encoded["fixed"])
    reference = tokenizer.decode(encoded["target_ids"])
    given = tokenizer.decode(encoded["target_ids"][:num_given])
    ids = tokenizer.encode(reference if text == "reference" else text.replace("GIVEN", given))
    return {
        "prompt_ids": [],
        "ids": ids,
        "reference_ids": encoded["target_ids"],
        "prompt": "",
        "text": tokenizer.decode(ids),
        "reference": reference,
        "fixed": encoded["fixed"],
    }


@pytest.mark.parametrize(
    ("text", "kept", "begins"),
    [
        ("reference", 1.0, 1.0),
        ("CCO", 0.0, 0.0),
        ("((", 0.0, 0.0),
        ("GIVEN((", 0.0, 1.0),
    ],
)
def test_given_fragments_are_looked_for_in_the_molecule(text: str, kept: float, begins: float) -> None:
    metrics = FragmentMetrics()
    metrics.update([answer(text)])
    assert metrics.compute() == {"fragments_kept": kept, "given_kept": begins}


ASPIRIN_FRAGMENTS = "c13ccccc14.CC2=O.C4(=O)O.O23"
STRINGS = [
    ASPIRIN_FRAGMENTS,
    "C[C@@H](N)C(=O)[O-].[Na+]",
    "Brc1ccc(Cl)cc1C%10.[nH]%10",
    r"F/C=C\F",
    "[13C]#N",
]


@pytest.fixture(scope="module")
def molecules() -> list[str]:
    encoded = [smiles_to_safe(row["input"]) for row in nci_rows("val", num_rows={"val": 150})]
    return [text for text in encoded if text is not None]


@pytest.fixture(scope="module")
def tokenizer() -> SafeTokenizer:
    return SafeTokenizer()


def test_pattern_is_the_published_one(molecules: list[str]) -> None:
    assert PATTERN == SAFESplitter.REGEX_PATTERN
    splitter = SAFESplitter()
    for text in [*STRINGS, *molecules]:
        assert split_safe(text) == splitter.tokenize(text)


def test_tokens_and_text_undo_each_other(tokenizer: SafeTokenizer, molecules: list[str]) -> None:
    for text in [*STRINGS, *molecules]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert [tokenizer.decode([index]) for index in ids] == split_safe(text)
        assert tokenizer.unk_id not in ids
    assert tokenizer.encode_batch(STRINGS) == [tokenizer.encode(text) for text in STRINGS]


def test_special_tokens_are_those_of_the_other_tasks(tokenizer: SafeTokenizer) -> None:
    special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.eos_id, tokenizer.bos_id)
    assert special == (0, 1, 2, 3, 4)
    assert (tokenizer.sep_id, tokenizer.unk_id) == (5, 6)


def test_what_is_not_in_the_vocabulary_is_unknown(tokenizer: SafeTokenizer) -> None:
    assert tokenizer.encode("C[UuoH]C") == [
        tokenizer.encode("C")[0],
        tokenizer.unk_id,
        tokenizer.encode("C")[0],
    ]
    assert tokenizer.unk_id in tokenizer.encode("CXC")


def test_it_is_the_same_after_saving_and_pickling(tokenizer: SafeTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    pickled = pickle.loads(pickle.dumps(tokenizer))
    for text in STRINGS:
        assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert loaded.decode(tokenizer.encode(text)) == text
        assert pickled.encode(text) == tokenizer.encode(text)
    assert loaded.mask_token_id == tokenizer.mask_id


def test_a_vocabulary_does_not_depend_on_the_order_of_the_texts(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(STRINGS)
    assert vocabulary == make_vocabulary(reversed(STRINGS * 2))
    assert "[13C]" in vocabulary
    assert set(vocabulary) - set(make_vocabulary([])) == {"[13C]", "[Na+]"}
    assert all(re.fullmatch(PATTERN, token) for token in vocabulary)
    file = tmp_path / "vocabulary.txt"
    file.write_text("\n".join(vocabulary))
    own = SafeTokenizer(str(file))
    assert own.vocab_size == 7 + len(vocabulary)
    file.write_text("C\nN\nC\n")
    with pytest.raises(ValueError, match="C stand there more than once"):
        SafeTokenizer(str(file))


def test_the_shipped_vocabulary_is_what_it_says(tokenizer: SafeTokenizer) -> None:
    tokens = [tokenizer.decode([index]) for index in range(7, tokenizer.vocab_size)]
    assert tokens == make_vocabulary(tokens)
