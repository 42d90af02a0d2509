"""The model under evaluation, as tasks see it: it answers conversations, and tells how likely a text is.

All workers ask together and get all answers, though each computes only its share: prompts are dealt out to the workers
in order of length, so that those that share a batch are about equally long.

Shapes: T tokens of a flat batch, P scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from moe.attention import Documents
from moe.generate import generate
from moe.model import HybridModel, PackedBatch
from moe.sampling import GREEDY, Sampling
from ray_jobs.evaluate.mode import evaluating
from ray_jobs.evaluate.workers import gather, my_share, num_workers, rank

Message = dict[str, str]
"""`role` and `content`."""
Messages = list[Message]


class Answer(NamedTuple):
    """What the model said.

    Attributes:
        text: without special tokens.
        finish: `stop` at its end token, `length` at the limit; `too_long` when the prompt left no room to answer.
    """

    text: str
    finish: Literal["stop", "length", "too_long"]


class Likelihood(NamedTuple):
    """How likely a text is behind another.

    Attributes:
        log_probability: of all its tokens together, nats.
        is_greedy: whether each of them is the likeliest one.
    """

    log_probability: float
    is_greedy: bool


@dataclass(frozen=True)
class LanguageModel:
    """A model and its tokenizer.

    Attributes:
        model: not modified.
        tokenizer: with a chat template; its end-of-sequence token ends an answer.
        batch_size: texts that one worker computes at a time.
    """

    model: HybridModel
    tokenizer: PreTrainedTokenizerFast
    batch_size: int

    def prompt(self, messages: Messages) -> list[int]:
        """Tokens of a conversation up to where the assistant's next turn begins."""
        tokens: list[int] = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return tokens

    def encode(self, text: str) -> list[int]:
        """Tokens of a text alone."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def answer(
        self, conversations: Sequence[Messages], max_new_tokens: int, sampling: Sampling = GREEDY, seed: int = 0
    ) -> list[Answer]:
        """The next turn of each conversation; all workers must call with the same, and all get all.

        Args:
            conversations: each ends with a user's turn.
            max_new_tokens: length limit of an answer.
            sampling: how tokens are chosen.
            seed: of the sampling; sampled answers also depend on the number of workers and the batch size.
        """
        prompts = [self.prompt(messages) for messages in conversations]
        return self.continue_tokens(prompts, max_new_tokens, sampling, seed)

    def continue_tokens(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling = GREEDY, seed: int = 0
    ) -> list[Answer]:
        """As `answer`, of prompts that are tokens already."""
        order = self._by_length(prompts)
        state = np.random.SeedSequence([seed, rank()]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        mine: list[Answer] = []
        for batch in self._batches(order):
            fitting = [index for index in batch if len(prompts[index]) < self.model.config.max_positions]
            with evaluating(self.model):
                tokens = generate(
                    self.model,
                    [prompts[index] for index in fitting],
                    max_new_tokens,
                    [self.tokenizer.eos_token_id],
                    sampling=sampling,
                    generator=generator,
                )
            answers = {
                index: self._answer(answer, min(max_new_tokens, self.model.config.max_positions - len(prompts[index])))
                for index, answer in zip(fitting, tokens, strict=True)
            }
            mine += [answers.get(index, Answer("", "too_long")) for index in batch]
        return _in_order(gather(mine), order)

    @torch.no_grad()
    def likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
        """How likely each text is behind its context; all workers must call with the same, and all get all.

        Args:
            pairs: tokens of a context, at least one, and of the text, at least one. Of pairs longer than the model's
                positions the context's beginning is left out.

        Raises:
            ValueError: a context is empty, or a text is empty or alone too long.
        """
        limit = self.model.config.max_positions
        for index, (context, text) in enumerate(pairs):
            if not context or not 0 < len(text) < limit:
                raise ValueError(f"pair {index} has {len(context)} and {len(text)} tokens; the model takes {limit}")
        order = self._by_length([[*context, *text] for context, text in pairs])
        mine: list[Likelihood] = []
        for batch in self._batches(order):
            with evaluating(self.model):
                mine += self._score([_fitting(*pairs[index], limit) for index in batch])
        return _in_order(gather(mine), order)

    def _score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
        """Of one batch; without pairs a token of no row goes along, since this worker's experts serve the others."""
        device = self.model.lm_head.weight.device
        tokens_T = torch.tensor([token for pair in pairs for part in pair for token in part] or [0], device=device)
        lengths = [len(context) + len(text) for context, text in pairs] or [1]
        rows = tuple(lengths) if pairs else (0,)
        hidden_TD, _ = self.model(PackedBatch(tokens_T, Documents.from_lengths(lengths, device), rows))
        if not pairs:
            return []
        ends = [*accumulate(lengths)]
        places_P = torch.cat(
            [torch.arange(end - len(text), end, device=device) for end, (_, text) in zip(ends, pairs, strict=True)]
        )
        logits_PV: Tensor = self.model.lm_head(hidden_TD[places_P - 1]).float()
        targets_P = tokens_T[places_P]
        log_P = -F.cross_entropy(logits_PV, targets_P, reduction="none").double()
        hits_P = logits_PV.argmax(-1) == targets_P
        borders = [*accumulate((len(text) for _, text in pairs), initial=0)]
        return [
            Likelihood(float(log_P[begin:end].sum()), bool(hits_P[begin:end].all())) for begin, end in pairwise(borders)
        ]

    def _answer(self, tokens: list[int], limit: int) -> Answer:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(text, "length" if len(tokens) == limit else "stop")

    def _by_length(self, texts: Sequence[Sequence[int]]) -> list[int]:
        return sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)

    def _batches(self, order: Sequence[int]) -> Iterator[Sequence[int]]:
        """This worker's, as many as any other's; the last ones may be empty."""
        mine = my_share(order)
        longest_share = -(-len(order) // num_workers())
        for start in range(0, longest_share, self.batch_size):
            yield mine[start : start + self.batch_size]


def _fitting(context: Sequence[int], text: Sequence[int], limit: int) -> tuple[Sequence[int], Sequence[int]]:
    """A pair with the end of its context that there is room for."""
    return context[len(text) - limit :], text


def _in_order(items: Sequence[Answer | Likelihood], order: Sequence[int]) -> list:  # type: ignore[type-arg]
    """Undo `order`."""
    places = dict(zip(order, items, strict=True))
    return [places[index] for index in range(len(order))]
