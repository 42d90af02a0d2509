"""Rewording of conversations by a language model behind OpenAI's chat completions API, which most servers speak.

A model may say anything, so what it says is taken only if it has the same turns and every answer still holds the facts
that it held before; else the conversation stays as it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ray_jobs.endpoint import Endpoint
from service.rows.formats import Conversation, Turn
from service.spec.identity import IdentityFacts, ParaphraseSpec

_INSTRUCTIONS = (
    "You reword training examples for a chat assistant. You are given a conversation as a JSON list of texts: a user's "
    "question, the assistant's answer, and so on in turn. Write each text anew in other words and another tone, with "
    "the same meaning. Keep names, dates, addresses and licences letter for letter, and add no facts. Answer with a "
    "JSON list of as many texts, and nothing else."
)


class Paraphrase(NamedTuple):
    """What became of a conversation.

    Attributes:
        conversation: reworded, or as it was.
        is_reworded: which.
    """

    conversation: Conversation
    is_reworded: bool


class Paraphraser:
    """A client of one endpoint; close it, or use it as a context manager.

    Args:
        spec: which endpoint and how.
        facts: what must survive.
        field: path of `spec` in the job's spec, for errors.
        pause: waits so many seconds.

    Raises:
        InvalidSpecError: the environment variable of the key is not set.
    """

    def __init__(
        self, spec: ParaphraseSpec, facts: IdentityFacts, field: str, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._num_parallel = spec.num_parallel
        self._facts = list(facts.model_dump(exclude_none=True).values())
        self._endpoint = Endpoint(spec, field, pause)

    def __enter__(self) -> Paraphraser:
        return self

    def __exit__(self, *_: object) -> None:
        self._endpoint.close()

    def reword(self, conversations: Sequence[Conversation], progress: Callable[[int], None]) -> list[Paraphrase]:
        """Reword each conversation, several at a time.

        Args:
            conversations: of users and assistants.
            progress: told how many are done.

        Returns:
            In the same order.

        Raises:
            EndpointError: the endpoint did not answer, however often it was asked.
            InvalidSpecError: it refused, in a way that asking again does not mend.
        """
        done = []
        pool = ThreadPoolExecutor(self._num_parallel)
        try:
            for paraphrase in pool.map(self._reword, conversations):
                done.append(paraphrase)
                progress(len(done))
        finally:
            pool.shutdown(cancel_futures=True)
        return done

    def _reword(self, conversation: Conversation) -> Paraphrase:
        request = json.dumps([turn.content for turn in conversation], ensure_ascii=False)
        messages = [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": request}]
        texts = _parse(self._endpoint.complete(messages))
        if len(texts) != len(conversation) or not all(text.strip() for text in texts):
            return Paraphrase(conversation, is_reworded=False)
        reworded = tuple(Turn(turn.role, text) for turn, text in zip(conversation, texts, strict=True))
        pairs = zip(conversation, reworded, strict=True)
        if reworded == conversation or not all(self._keeps_facts(old, new) for old, new in pairs):
            return Paraphrase(conversation, is_reworded=False)
        return Paraphrase(reworded, is_reworded=True)

    def _keeps_facts(self, old: Turn, new: Turn) -> bool:
        return old.role != "assistant" or all(fact in new.content for fact in self._facts if fact in old.content)


def _parse(content: str) -> list[str]:
    """The list within an answer, which some models fence or introduce; empty when there is none."""
    try:
        texts = json.loads(content[content.index("[") : content.rindex("]") + 1])
        "".join(texts).encode()
    except (ValueError, TypeError, RecursionError):
        return []
    return texts if isinstance(texts, list) else []
