"""Plain text: your own files, data sets of the Hub, a small corpus, and metrics of generated text."""

from xlm.tasks.text.documents import EncodedPair, EncodedText, encode_pair, encode_text
from xlm.tasks.text.generative_perplexity import GenerativePerplexity
from xlm.tasks.text.mauve import Mauve, mauve_score
from xlm.tasks.text.metrics import TextMetrics
from xlm.tasks.text.plays import play_rows

__all__ = [
    "EncodedPair",
    "EncodedText",
    "GenerativePerplexity",
    "Mauve",
    "TextMetrics",
    "encode_pair",
    "encode_text",
    "mauve_score",
    "play_rows",
]
