"""Sends what is in the outbox, in threads of its own: one message a receiver at a time, so that a slow one delays few.

A receiver takes a message by answering 2xx within ten seconds. A redirect is no answer: it could lead anywhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Literal

import httpx

from service.errors import InvalidSpecError
from service.retry_after import parse_retry_after
from service.store.outbox import Message, OutboxTables
from service.webhooks.address import request_to, resolve
from service.webhooks.schedule import is_given_up, next_attempt
from service.webhooks.signature import signed_headers

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
Outcome = Literal["taken", "failed", "left"]
"""Of a try; one is left when another sender has claimed the message."""
_CLAIM = timedelta(seconds=60)
"""Longer than any try takes, the resolving of names included."""
_AT_ONCE = 8
_KEPT = timedelta(days=30)
_CLEANING_INTERVAL_S = 3600.0


class WebhookSender:
    """The loop, in a thread of its own.

    Args:
        store: has the outbox.
        allow_private: whether receivers may be in the service's own network.
        interval_s: seconds between two looks when nothing was due.
        timeout_s: for a receiver's answer.

    Attributes:
        num_tries: since this process began, by their outcome.
    """

    def __init__(
        self, store: OutboxTables, *, allow_private: bool, interval_s: float = 1.0, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._store, self._allow_private, self._interval_s = store, allow_private, interval_s
        self._http = httpx.Client(timeout=timeout_s, trust_env=False)
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._last_cleaning = time.monotonic()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook")
        self._thread = threading.Thread(target=self._loop, name="webhooks", daemon=True)
        self.num_tries: Counter[Outcome] = Counter()

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop, after the tries that are under way."""
        self._stopped.set()
        self._wake.set()
        self._thread.join()
        self._pool.shutdown()
        self._http.close()

    def wake(self) -> None:
        """Look now: something is due."""
        self._wake.set()

    def send_due(self) -> int:
        """Try each receiver once that something is due to; returns how many."""
        due = self._store.due_messages(datetime.now(UTC), limit=100)
        self.num_tries.update(self._pool.map(self._send, due))
        return len(due)

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            num_due = 0
            try:
                num_due = self.send_due()
                self._clean()
            except Exception:
                log.exception("the outbox could not be worked through; the next try follows")
            if not num_due:
                self._wake.wait(self._interval_s)

    def _clean(self) -> None:
        if time.monotonic() - self._last_cleaning > _CLEANING_INTERVAL_S:
            self._last_cleaning = time.monotonic()
            self._store.forget_messages(datetime.now(UTC) - _KEPT)

    def _send(self, message: Message) -> Outcome:
        if not self._store.claim(message, datetime.now(UTC) + _CLAIM):
            return "left"
        try:
            response = self._post(message)
        except (httpx.HTTPError, InvalidSpecError) as error:
            self._note_failure(message, None, str(error)[:500] or type(error).__name__, 0.0)
            return "failed"
        if response.is_success:
            self._store.note_delivered(message, datetime.now(UTC), response.status_code)
            return "taken"
        self._note_failure(
            message, response.status_code, None, parse_retry_after(response.headers.get("retry-after", ""))
        )
        return "failed"

    def _post(self, message: Message) -> httpx.Response:
        """The receiver's answer, without its body, which is of no interest and could be endless.

        Raises:
            InvalidSpecError: its address is not one to send to.
            httpx.HTTPError: it did not answer.
        """
        address = resolve(message.url, allow_private=self._allow_private)
        headers = signed_headers(message.secret, message.id, int(time.time()), message.body)
        request = request_to(address, message.url, message.body, headers)
        request.extensions["timeout"] = self._http.timeout.as_dict()
        response = self._http.send(request, stream=True)
        response.close()
        return response

    def _note_failure(self, message: Message, status: int | None, error: str | None, wished_s: float) -> None:
        now = datetime.now(UTC)
        again = next_attempt(now, message.attempts + 1, wished_s)
        failing_since = self._store.note_failure(message, now, status, error, again)
        log.warning("%s was not taken by %s: %s", message.id, message.webhook_id, error or f"HTTP {status}")
        if is_given_up(now, failing_since, status):
            reason = "it answered 410 Gone" if status == httpx.codes.GONE else f"it took nothing since {failing_since}"
            self._store.disable_webhook(message.webhook_id, now, reason)
