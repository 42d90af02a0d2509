"""Errors as RFC 9457 problem details: what happened, a stable code, the field's path, what to do."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.errors import (
    BackendUnavailableError,
    ConflictError,
    InvalidSpecError,
    NotAuthenticatedError,
    NotFoundError,
    SleddogError,
    SourceNotFoundError,
)
from service.spec.base import field_errors
from service.spec.resources import FieldProblem, Problem

log = logging.getLogger(__name__)

_STATUS_OF: dict[type[SleddogError], HTTPStatus] = {
    NotAuthenticatedError: HTTPStatus.UNAUTHORIZED,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
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


def _answer(
    status: HTTPStatus,
    code: str,
    detail: str,
    errors: list[FieldProblem] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    problem = Problem(title=status.phrase, status=status, detail=detail, code=code, errors=errors or [])
    return JSONResponse(problem.model_dump(), status, headers, media_type="application/problem+json")


def _sleddog_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SleddogError)
    status = _STATUS_OF.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
    errors = [FieldProblem(field=error.field, message=error.message)] if error.field else []
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None
    return _answer(status, error.code, str(error), errors, headers)


def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # FastAPI puts where a value came from in front of its path: body, query, header
    located = [{**item, "loc": () if item["type"] == "json_invalid" else item["loc"][1:]} for item in error.errors()]
    errors = [FieldProblem(field=fault.field, message=fault.message) for fault in field_errors(located, error.body)]
    detail = "; ".join(f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in errors)
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_spec", detail, errors)


def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    return _answer(status, status.name.lower(), str(error.detail), headers=dict(error.headers or {}))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = "the service failed; its log says why"
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail)
