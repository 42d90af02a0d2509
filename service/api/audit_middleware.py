"""Gives each request an id, and sees that every write and every refused access is in the record."""

from __future__ import annotations

from uuid import uuid4

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import origin_of
from service.api.dependencies import control_plane
from service.api.problems import INTERNAL_ERROR
from service.spec.access import Outcome
from service.store.principal import Principal

REFUSED = (401, 403)
RATE_LIMITED = 429
"""Not recorded, or the record would grow by what the limit holds off."""


class AuditMiddleware:
    """Records requests whose own transaction has not: refused ones, failed ones, and what writes elsewhere.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; the record is complete before the answer's first byte goes out."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request.state.request_id = uuid4().hex

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request.state.request_id
                status = message["status"]
                is_write = getattr(request.state, "is_write", False)
                if status in REFUSED or (is_write and status != RATE_LIMITED and not _is_recorded(request)):
                    await run_in_threadpool(_complete, request, status)
            await send(message)

        try:
            await self._app(scope, receive, send_recorded)
        except Exception:
            # what answers an unexpected error stands outside of all middleware
            request.state.problem_code = INTERNAL_ERROR
            await run_in_threadpool(_complete, request, 500)
            raise


def _is_recorded(request: Request) -> bool:
    principal: Principal | None = getattr(request.state, "principal", None)
    return principal is not None and principal.origin.is_recorded


def _complete(request: Request, status: int) -> None:
    store, principal = control_plane(request).store, getattr(request.state, "principal", None)
    if principal is not None:
        store = store.of(principal)
    outcome: Outcome = "refused" if status in REFUSED else "done" if status < 400 else "failed"
    store.complete_audit(origin_of(request), outcome, getattr(request.state, "problem_code", None))
