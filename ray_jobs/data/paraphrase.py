"""Rewording of conversations by a language model behind OpenAI's chat completions API, which most servers speak.

A model may say anything, so what it says is taken only if it has the same turns and every answer still holds the facts
that it held before; else the conversation stays as it was. A server may be busy or away, so a request is repeated with
growing pauses; what a repetition cannot mend (key, model, request) is the spec's fault and ends the job at once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx

from ray_jobs.data.formats import Conversation, Turn
from service.errors import EndpointError, InvalidSpecError
from service.spec.identity import IdentityFacts, ParaphraseSpec

_RETRIED_STATUSES = (408, 409, 425, 429)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_MAX_CHARS_SHOWN = 200
_INSTRUCTIONS = (
    "You reword training examples for a chat assistant. You are given a conversation as a JSON list of texts: a user's "
    "question, the assistant's answer, and so on in turn. Write each text anew in other words and another tone, with "
    "the same meaning. Keep names, dates, addresses and licences letter for letter, and add no facts. Answer with a "
    "JSON list of as many texts, and nothing else."
)


class _BusyError(Exception):
    """The endpoint did not answer now, and may do so later; after so many seconds, if it says."""

    def __init__(self, problem: str, pause_s: float = 0.0) -> None:
        super().__init__(problem)
        self.pause_s = pause_s


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
        self._spec, self._field, self._pause = spec, field, pause
        self._facts = list(facts.model_dump(exclude_none=True).values())
        self._client = httpx.Client(
            base_url=spec.base_url.rstrip("/") + "/", headers=_authorization(spec, field), timeout=spec.timeout_s
        )

    def __enter__(self) -> Paraphraser:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

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
        pool = ThreadPoolExecutor(self._spec.num_parallel)
        try:
            for paraphrase in pool.map(self._reword, conversations):
                done.append(paraphrase)
                progress(len(done))
        finally:
            pool.shutdown(cancel_futures=True)
        return done

    def _reword(self, conversation: Conversation) -> Paraphrase:
        texts = _parse(self._complete(json.dumps([turn.content for turn in conversation], ensure_ascii=False)))
        if len(texts) != len(conversation) or not all(text.strip() for text in texts):
            return Paraphrase(conversation, is_reworded=False)
        reworded = tuple(Turn(turn.role, text) for turn, text in zip(conversation, texts, strict=True))
        pairs = zip(conversation, reworded, strict=True)
        if reworded == conversation or not all(self._keeps_facts(old, new) for old, new in pairs):
            return Paraphrase(conversation, is_reworded=False)
        return Paraphrase(reworded, is_reworded=True)

    def _keeps_facts(self, old: Turn, new: Turn) -> bool:
        return old.role != "assistant" or all(fact in new.content for fact in self._facts if fact in old.content)

    def _complete(self, request: str) -> str:
        body = {
            "model": self._spec.model,
            "temperature": self._spec.temperature,
            "messages": [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": request}],
        }
        attempts = self._spec.max_retries + 1
        for attempt in range(attempts):
            try:
                return _content(self._post(body))
            except _BusyError as error:
                busy = error
            if attempt + 1 < attempts:
                self._pause(min(max(_FIRST_PAUSE_S * 2**attempt, busy.pause_s), _LONGEST_PAUSE_S))
        raise EndpointError(f"{self._spec.base_url} was asked {attempts} times, at last: {busy}", self._field)

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        try:
            response = self._client.post("chat/completions", json=body)
        except httpx.TransportError as error:
            raise _BusyError(f"{type(error).__name__}: {error}") from error
        if response.is_success:
            return response
        shown = f"status {response.status_code}: {' '.join(response.text.split())[:_MAX_CHARS_SHOWN]}"
        if response.status_code in _RETRIED_STATUSES or response.status_code >= 500:
            raise _BusyError(shown, _seconds(response.headers.get("retry-after", "")))
        name = {401: ".api_key_env", 403: ".api_key_env", 404: ".model"}.get(response.status_code, "")
        raise InvalidSpecError(f"{self._spec.base_url} refuses: {shown}", f"{self._field}{name}")


def _authorization(spec: ParaphraseSpec, field: str) -> dict[str, str]:
    if spec.api_key_env is None:
        return {}
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key:
        raise InvalidSpecError(f"the environment variable {spec.api_key_env} is not set", f"{field}.api_key_env")
    return {"Authorization": f"Bearer {key}"}


def _seconds(retry_after: str) -> float:
    try:
        return max(0.0, float(retry_after))
    except ValueError:  # a date, or nothing
        return 0.0


def _content(response: httpx.Response) -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return content if isinstance(content, str) else ""


def _parse(content: str) -> list[str]:
    """The list within an answer, which some models fence or introduce; empty when there is none."""
    try:
        texts = json.loads(content[content.index("[") : content.rindex("]") + 1])
        "".join(texts).encode()
    except (ValueError, TypeError, RecursionError):
        return []
    return texts if isinstance(texts, list) else []
