"""Every error code: what it means, who can mend it, its exception, and the status of the REST API."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

from fastapi import FastAPI, Request
from starlette.responses import Response

from scripts.reference.markdown import code, prose, table
from service.api import problems
from service.errors import RateLimitedError, SleddogError


def error_types() -> list[type[SleddogError]]:
    """All of the tree but its root, in the order of the code."""
    return list(_below(SleddogError))


def _below(kind: type[SleddogError]) -> Iterator[type[SleddogError]]:
    for child in kind.__subclasses__():
        if child.__module__ == SleddogError.__module__:
            yield child
        yield from _below(child)


def errors_page() -> list[str]:
    """Lines: a table of all codes."""
    app = FastAPI()
    problems.install(app)
    rows = [
        (
            code(kind.code),
            prose((kind.__doc__ or "").split("\n\n")[0]),
            kind.fault,
            _status(app, kind),
            code(kind.__name__) + ", " + code(_standard(kind)),
        )
        for kind in error_types()
    ]
    return table(("code", "meaning", "who can mend it", "status", "exception, also a"), sorted(rows))


def _status(app: FastAPI, kind: type[SleddogError]) -> str:
    """Asked of the handler that answers requests; what it does not know ends no request, and has none."""
    request = Request({"type": "http", "method": "GET", "path": "/v1/jobs", "headers": [], "query_string": b""})
    error = RateLimitedError() if issubclass(kind, RateLimitedError) else kind("what happened")
    response = app.exception_handlers[SleddogError](request, error)
    assert isinstance(response, Response), "the handler is no coroutine"
    return "" if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR else code(str(response.status_code))


def _standard(kind: type[SleddogError]) -> str:
    return next(base.__name__ for base in kind.__mro__ if not issubclass(base, SleddogError))
