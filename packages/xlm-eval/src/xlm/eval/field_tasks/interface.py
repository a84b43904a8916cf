"""The lm-evaluation-harness's interface of a model, around a scorer."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from xlm.eval.field_tasks.requests import Continuation, Decoding, Start, encode, encode_pair
from xlm.eval.field_tasks.scorer import Scorer


def language_model(scorer: Scorer) -> Any:
    """An object of the harness's class ``LM`` that answers by a scorer."""
    interface: Any = import_module("lm_eval.api.model")
    utils: Any = import_module("lm_eval.utils")
    tokenizer = scorer.slots.tokenizer

    class LanguageModel(interface.LM):
        """Requests of the harness, answered in batches of similar length."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """log p(continuation | context), and whether greedy decoding writes it.

            The latter is False where a family does not write token by token: the job refuses metrics of it.
            """
            asked = [_continuation(request, scorer) for request in requests]
            return [(each.log_prob, bool(each.is_greedy)) for each in scorer.log_probs(asked)]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """log p of whole texts, in disjoint windows: each token is scored once."""
            windows: list[Continuation] = []
            owners: list[int] = []
            length = scorer.max_length - (scorer.layout == "prefix")
            for number, request in enumerate(requests):
                rolling = utils.get_rolling_token_windows(
                    token_list=encode(request.args[0], tokenizer),
                    prefix_token=None,
                    max_seq_len=length,
                    context_len=1,
                )
                for part, (context, ids) in enumerate(map(utils.make_disjoint_window, rolling)):
                    given = [token for token in context if token is not None]
                    windows.append(Continuation(given, request.doc_id or 0, part, list(ids)))
                    owners.append(number)
            sums = [0.0] * len(requests)
            for owner, scored in zip(owners, scorer.log_probs(windows), strict=True):
                sums[owner] += scored.log_prob
            return sums

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Texts that continue the contexts, up to a text that ends them."""
            groups: dict[str, list[int]] = defaultdict(list)
            for number, request in enumerate(requests):
                groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(number)
            found = [""] * len(requests)
            for numbers in groups.values():
                decoding = Decoding.of(requests[numbers[0]].args[1], scorer.run.settings.predictor)
                seen: Counter[object] = Counter()
                starts: list[Start] = []
                for number in numbers:
                    request = requests[number]
                    key = (request.task_name, request.doc_id, request.args[0])
                    starts.append(Start(encode(request.args[0], tokenizer), request.doc_id or 0, seen[key]))
                    seen[key] += 1
                texts = scorer.generate(starts, num_new=decoding.num_new, sampling=decoding.sampling)
                for number, ids in zip(numbers, texts, strict=True):
                    found[number] = decoding.cut(tokenizer.decode(ids))
            return found

    return LanguageModel()


def _continuation(request: Any, scorer: Scorer) -> Continuation:
    context, continuation = request.args
    together = scorer.layout == "prefix"
    given, ids = encode_pair(context, continuation, scorer.slots.tokenizer, together=together)
    return Continuation(given, request.doc_id or 0, 0, ids)
