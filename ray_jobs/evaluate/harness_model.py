"""The model as lm-evaluation-harness wants it. Imported only where the harness is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from moe.sampling import GREEDY, Sampling
from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.relay import Relay

_MAX_NEW_TOKENS = 256
"""Length limit of an answer when the task names none: the harness's own."""


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Answers the harness's requests.

    Args:
        relay: reaches the model on all workers.
        model: the same, for its tokenizer and its length.
    """

    def __init__(self, relay: Relay, model: LanguageModel) -> None:
        super().__init__()
        self._relay, self._model = relay, model
        self.tokenizer = model.tokenizer
        self._max_positions = model.model.config.max_positions

    @property
    def eot_token_id(self) -> int:
        """Token that ends a turn, and stands before a text that has no context."""
        return int(self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; those of the chat template are read out of it, none is added."""
        del add_special_tokens
        return self._model.encode(string)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log probability of each text from its beginning, in windows where it is longer than the model's positions."""
        del disable_tqdm  # nothing shows progress
        windows: list[tuple[int, tuple[list[int], list[int]]]] = []
        for index, request in enumerate(requests):
            tokens = self._model.encode(request.args[0])
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self._max_positions - 1, context_len=1)
            windows += [(index, make_disjoint_window(part)) for part in parts]
        sums = [0.0] * len(requests)
        likelihoods = self._likelihoods([window for _, window in windows])
        for (index, _), (log_probability, _) in zip(windows, likelihoods, strict=True):
            sums[index] += log_probability
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each context, cut at the first of its stop texts."""
        del disable_tqdm
        answers = [""] * len(requests)
        groups: dict[tuple[int, Sampling], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_settings(request.args[1]), []).append(index)
        for (max_new_tokens, sampling), indices in groups.items():
            room = self._max_positions - max_new_tokens
            contexts = [self._model.encode(requests[index].args[0]) or [self.prefix_token_id] for index in indices]
            prompts = [context[-max(1, room) :] for context in contexts]
            said = self._relay.ask("continue_tokens", prompts, max_new_tokens, sampling)
            for index, answer in zip(indices, said, strict=True):
                answers[index] = _cut(answer.text, requests[index].args[1].get("until", []))
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness may cache requests, which it is not asked to."""
        return "sleddog"

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._likelihoods([(context, continuation) for _, context, continuation in requests])

    def _likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        likelihoods = self._relay.ask("likelihoods", pairs)
        return [(likelihood.log_probability, likelihood.is_greedy) for likelihood in likelihoods]


def _settings(arguments: dict[str, Any]) -> tuple[int, Sampling]:
    max_new_tokens = int(arguments.get("max_gen_toks", _MAX_NEW_TOKENS))
    temperature = float(arguments.get("temperature", 0.0))
    if not arguments.get("do_sample", temperature > 0) or temperature == 0:
        return max_new_tokens, GREEDY
    return max_new_tokens, Sampling(temperature, arguments.get("top_k"), float(arguments.get("top_p", 1.0)))


def _cut(text: str, until: str | Sequence[str]) -> str:
    stops = [until] if isinstance(until, str) else until
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
