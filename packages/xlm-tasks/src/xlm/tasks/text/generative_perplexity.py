"""How likely generated texts are under another language model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from xlm.tasks.metrics import Generation
from xlm.tasks.text.judge import Judge, PaddedTexts
from xlm.tasks.text.metrics import token_entropy


class GenerativePerplexity:
    """Perplexity of generated texts under a causal language model, as the literature reports it.

    The text of each generation is tokenised with the tokenizer of the scoring model, without special tokens
    around it. Each token but a text's first, which nothing stands before, is scored:
    ``generative_perplexity`` = exp(sum of -log p / number of scored tokens), over all texts.

    Beside it: ``judge_texts`` and ``judge_tokens``, how many texts and tokens were scored; ``judge_entropy``,
    entropy in nats of a token drawn from a scored text, in the judge's tokens, averaged over these texts;
    ``scored`` and ``unscored``, shares of texts with and without at least two tokens;
    ``truncated_tokens``, share of tokens behind ``max_length``, which are not scored. Compare perplexities
    only between runs that agree in these, in the model, and in the length and the entropy of the texts:
    repeated words have a low perplexity.

    Args:
        path: The model with its tokenizer: a repository of the Hub or a folder.
        revision: branch, tag or commit of the repository.
        dtype: Of the weights: float32, bfloat16 or float16. Logits are scored in float32.
        batch_size: Texts scored at once; those of a batch have similar lengths.
        max_length: Most tokens of a text that are scored; at most what the model was made for.
        device: Where the model runs; "auto" is this process's GPU if it has one.

    Attributes:
        sums: The state, float64 scalars.

    Raises:
        ValueError: If the dtype is none of the three, or a size is below 1 (``max_length``: 2).
    """

    row_by_row = False  # each text would be scored a second time, alone

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
        max_length: int = 1024,
        device: str = "auto",
    ) -> None:
        self._judge = Judge(
            path,
            revision=revision,
            dtype=dtype,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
        )
        self.reset()

    def check(self, references: Sequence[str]) -> None:
        """Look for the judge before the first text is generated.

        Raises:
            ValueError: If it is not there, or takes fewer tokens than ``max_length``; one line.
        """
        self._judge.check()

    def reset(self) -> None:
        """Forget all generations."""
        names = ("nll", "scored_tokens", "tokens", "truncated_tokens", "texts", "scored", "entropy")
        self.sums: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.float64) for name in names}

    def update(self, generations: Sequence[Generation]) -> None:
        """Scores more generations; the first call loads the model."""
        texts = self._judge.encode([generation["text"] for generation in generations])
        kept = [self._judge.cut(ids) for ids in texts]
        scored = [ids for ids in kept if len(ids) > 1]
        self.sums["texts"] += len(texts)
        self.sums["scored"] += len(scored)
        self.sums["tokens"] += sum(map(len, texts))
        self.sums["truncated_tokens"] += sum(map(len, texts)) - sum(map(len, kept))
        self.sums["scored_tokens"] += sum(len(ids) - 1 for ids in scored)
        self.sums["entropy"] += sum(map(token_entropy, scored))
        for batch in self._judge.batches(scored):
            self.sums["nll"] += self._nll(batch)

    def compute(self) -> dict[str, float]:
        """The metrics by name; 0.0 where nothing was scored."""
        sums = {name: float(value) for name, value in self.sums.items()}
        texts, tokens = max(sums["texts"], 1.0), max(sums["tokens"], 1.0)
        per_token = sums["nll"] / max(sums["scored_tokens"], 1.0)
        return {
            "generative_perplexity": math.exp(min(per_token, 700.0)) if sums["scored_tokens"] else 0.0,
            "judge_entropy": sums["entropy"] / max(sums["scored"], 1.0),
            "judge_texts": sums["scored"],
            "judge_tokens": sums["scored_tokens"],
            "scored": sums["scored"] / texts,
            "unscored": (sums["texts"] - sums["scored"]) / texts,
            "truncated_tokens": sums["truncated_tokens"] / tokens,
        }

    def _nll(self, batch: PaddedTexts) -> float:
        """Sum over texts and tokens of -log p(token | tokens before it), in nats."""
        with torch.inference_mode():
            logits: Tensor = self._judge.model(
                input_ids=batch.ids, attention_mask=batch.is_token.long(), use_cache=False
            ).logits
            losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), batch.ids[:, 1:], reduction="none")
        return float((losses.double() * batch.is_token[:, 1:]).sum())
