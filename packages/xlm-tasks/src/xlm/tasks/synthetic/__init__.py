"""Languages with a known distribution: exact log-probabilities, exact networks, metrics without a judge."""

from xlm.tasks.synthetic.grammar import GrammarLanguage, pcfg
from xlm.tasks.synthetic.languages import (
    Language,
    TextRow,
    draw_texts,
    encode_tokens,
    estimate_entropy,
    language_rows,
    layout,
    length_probs,
    log_probs,
)
from xlm.tasks.synthetic.markov import MarkovLanguage, hmm, ngram
from xlm.tasks.synthetic.metrics import LanguageMetrics
from xlm.tasks.synthetic.oracle import ARLMOracle, MaskedOracle, factorisation_error, marginals

__all__ = [
    "ARLMOracle",
    "GrammarLanguage",
    "Language",
    "LanguageMetrics",
    "MarkovLanguage",
    "MaskedOracle",
    "TextRow",
    "draw_texts",
    "encode_tokens",
    "estimate_entropy",
    "factorisation_error",
    "hmm",
    "language_rows",
    "layout",
    "length_probs",
    "log_probs",
    "marginals",
    "ngram",
    "pcfg",
]
