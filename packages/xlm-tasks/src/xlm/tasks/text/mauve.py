"""MAUVE (Pillutla et al. 2021, arXiv:2102.01454): how close generated and real texts are as a whole."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any


def mauve_score(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    model: str = "gpt2-large",
    max_length: int = 1024,
    seed: int = 25,
    device: int = -1,
) -> float:
    """MAUVE of generated texts against real ones, in (0, 1]; computed by the authors' package.

    It compares two sets as a whole, so it is no sum over texts and no metric of a loader: compute it from the
    file ``predictions.jsonl`` of a run. The authors advise some thousand texts on each side; values are
    comparable between equal numbers of texts, lengths, models and seeds only.

    Args:
        texts: Generated texts.
        references: Real texts of the same kind and length.
        model: Name of the model whose features are compared.
        max_length: Tokens of a text that are looked at.
        seed: Of the clustering.
        device: Number of the GPU, -1 for the CPU.

    Raises:
        ValueError: If there are no texts on one side.
        ModuleNotFoundError: If the package is not installed; names the extra.
    """
    if not texts or not references:
        raise ValueError(f"MAUVE needs texts on both sides, got {len(texts)} and {len(references)}")
    try:
        mauve: Any = import_module("mauve")
    except ModuleNotFoundError as error:
        if error.name != "mauve":
            raise
        raise ModuleNotFoundError('MAUVE needs an extra: uv pip install "xlm-tasks[mauve]"') from None
    result = mauve.compute_mauve(
        p_text=list(references),
        q_text=list(texts),
        featurize_model_name=model,
        max_text_length=max_length,
        seed=seed,
        device_id=device,
        verbose=False,
    )
    return float(result.mauve)
