"""Errors as RFC 9457 problem details: what happened, a stable code, the field's path, what to do."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.api.openai_errors import PROBLEM_MEDIA_TYPE, openai_error, wants_openai_form
from service.errors import (
    BackendUnavailableError,
    ConflictError,
    InvalidDatasetError,
    InvalidSpecError,
    NotAuthenticatedError,
    NotAuthorizedError,
    NotFoundError,
    NotReadyError,
    PreconditionFailedError,
    RateLimitedError,
    SleddogError,
    SourceNotFoundError,
)
from service.spec.base import field_errors
from service.spec.resources import FieldProblem, Problem

INTERNAL_ERROR = "internal_error"

_PROBLEM = {"$ref": "#/components/schemas/Problem"}

log = logging.getLogger(__name__)

_STATUS_OF: dict[type[SleddogError], HTTPStatus] = {
    NotAuthenticatedError: HTTPStatus.UNAUTHORIZED,
    NotAuthorizedError: HTTPStatus.FORBIDDEN,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    PreconditionFailedError: HTTPStatus.PRECONDITION_FAILED,
    RateLimitedError: HTTPStatus.TOO_MANY_REQUESTS,
    InvalidDatasetError: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidSpecError: HTTPStatus.UNPROCESSABLE_ENTITY,
    SourceNotFoundError: HTTPStatus.UNPROCESSABLE_ENTITY,
    BackendUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}


def install(app: FastAPI) -> None:
    """Answer every error as a problem."""
    app.add_exception_handler(SleddogError, _sleddog_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    describe = app.openapi
    app.openapi = lambda: _with_media_type(describe())  # type: ignore[method-assign]


def _with_media_type(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, problems in their own media type: FastAPI gives all answers of a route the same."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                content = answer.get("content", {})
                for media_type in [name for name, body in content.items() if body.get("schema") == _PROBLEM]:
                    content[PROBLEM_MEDIA_TYPE] = content.pop(media_type)
    return document


def _answer(
    request: Request,
    status: HTTPStatus,
    code: str,
    detail: str,
    *,
    errors: list[FieldProblem] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    request.state.problem_code = code
    problem = Problem(title=status.phrase, status=status, detail=detail, code=code, errors=errors or [])
    if wants_openai_form(request):
        return openai_error(problem, headers)
    return JSONResponse(problem.model_dump(), status, headers, media_type=PROBLEM_MEDIA_TYPE)


def _sleddog_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SleddogError)
    known = (_STATUS_OF[kind] for kind in type(error).__mro__ if kind in _STATUS_OF)
    status = next(known, HTTPStatus.INTERNAL_SERVER_ERROR)
    errors = [FieldProblem(field=error.field, message=error.message)] if error.field else []
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
    if isinstance(error, NotReadyError):
        headers["Retry-After"] = "1"
    if isinstance(error, RateLimitedError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return _answer(request, status, error.code, str(error), errors=errors, headers=headers)


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # FastAPI puts where a value came from in front of its path: body, query, header
    located = [{**item, "loc": () if item["type"] == "json_invalid" else item["loc"][1:]} for item in error.errors()]
    errors = [FieldProblem(field=fault.field, message=fault.message) for fault in field_errors(located, error.body)]
    detail = "; ".join(f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in errors)
    return _answer(request, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_spec", detail, errors=errors)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    return _answer(request, status, status.name.lower(), str(error.detail), headers=dict(error.headers or {}))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    path, request_id = request.url.path, request.state.request_id
    log.error("%s %s failed, request %s", request.method, path, request_id, exc_info=error)
    detail = f"the service failed; its log says why, at request {request.state.request_id}"
    headers = {"X-Request-Id": request.state.request_id}
    return _answer(request, HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR, detail, headers=headers)
