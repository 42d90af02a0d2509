"""Answers that are sent only to who has not got them, and changes only by who knows what is changed.

By `ETag`, `If-None-Match` and `If-Match` (RFC 9110, section 13). The tag is the hash of the answer, so it is right
whatever the answer depends on, the place in the queue too. Rejected: a version a row, which would spare the store the
reading, and miss what no row holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response, status
from fastapi.responses import StreamingResponse

from service.api.access import KeyedRoute
from service.errors import PreconditionFailedError
from service.spec.resources import Problem

_NOT_MODIFIED = {"description": "It is what `If-None-Match` names"}
_HEADER = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "ETag that the caller has",
}


IfMatch = Annotated[
    str | None, Header(description="ETag of the resource as the caller knows it; it is changed only if it still is so")
]
PRECONDITION: dict[int | str, dict[str, Any]] = {
    412: {"model": Problem, "description": "The resource is no longer what `If-Match` names"}
}


async def require_match(request: Request, wanted: str, router: APIRouter) -> bytes:
    """What a GET of the request's path answers, if it is what `If-Match` names.

    Args:
        request: which is to change it.
        wanted: the header.
        router: has the route of that GET.

    Raises:
        PreconditionFailedError: it is not.
    """
    path = request.scope["route"].path
    routes = (route for route in router.routes if isinstance(route, ConditionalRoute))
    [route] = [route for route in routes if route.path == path and "GET" in (route.methods or ())]
    without = [(name, value) for name, value in request.scope["headers"] if name != b"if-none-match"]
    response = await route.get_route_handler()(Request({**request.scope, "method": "GET", "headers": without}))
    tags = [tag.strip() for tag in wanted.split(",")]
    if "*" not in tags and response.headers["ETag"] not in tags:
        raise PreconditionFailedError("it has changed since; look at it again")
    return bytes(response.body)


class ConditionalRoute(KeyedRoute):
    """A keyed route whose answers to GET have an ETag."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        responses = options.get("responses") or {}
        if "GET" in (options.get("methods") or ()) and 304 not in responses:
            options["responses"] = {**responses, 304: _NOT_MODIFIED}
            options["openapi_extra"] = {"parameters": [_HEADER]}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The usual handler, whose answer may turn out to be known."""
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return _unless_known(request, await answer(request))

        return handle


def _unless_known(request: Request, response: Response) -> Response:
    is_plain = response.status_code == status.HTTP_200_OK and not isinstance(response, StreamingResponse)
    if request.method != "GET" or not is_plain:
        return response
    etag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return response
