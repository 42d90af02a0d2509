"""Errors in OpenAI's form, on the routes that its client calls.

A client that takes problem details gets those there too: Sleddog's own does.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.spec.resources import Problem


class ErrorForm(BaseModel):
    """What is wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorForm


PROBLEM_MEDIA_TYPE = "application/problem+json"
_PATHS = ("/v1/files", "/v1/fine_tuning", "/v1/models")
OPENAI_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": OpenAIError, "description": "A value is not valid; `param` names it"},
    401: {"model": OpenAIError, "description": "No API key, or a wrong one"},
    403: {"model": OpenAIError, "description": "The key may not do this"},
    409: {"model": OpenAIError, "description": "The request contradicts the state"},
    413: {"model": OpenAIError, "description": "The body is larger than the service takes"},
    429: {"model": OpenAIError, "description": "The key asks too often; `Retry-After` says when to come again"},
    422: {"model": Problem, "description": "As 400, for a client that takes problem details"},
}
_CODES = {"not_authenticated": "invalid_api_key"}


def openai_not_found(what: str) -> dict[int | str, dict[str, Any]]:
    """For a route that names a `what`."""
    return {404: {"model": OpenAIError, "description": f"There is no such {what}"}}


def wants_openai_form(request: Request) -> bool:
    """Whether an error of this request is answered in OpenAI's form."""
    path = request.url.path
    is_there = any(path == prefix or path.startswith(f"{prefix}/") for prefix in _PATHS)
    return is_there and PROBLEM_MEDIA_TYPE not in request.headers.get("accept", "")


def openai_error(problem: Problem, headers: dict[str, str] | None) -> JSONResponse:
    """A problem in OpenAI's form.

    Its client takes 422 for 400, and repeats a 409 unless told not to: only one that time mends is worth that.
    """
    is_invalid = problem.status == HTTPStatus.UNPROCESSABLE_ENTITY
    status = HTTPStatus.BAD_REQUEST if is_invalid else problem.status
    param = problem.errors[0].field or None if problem.errors else None
    message = problem.detail.removeprefix(f"{param}: ") if param else problem.detail
    code = _CODES.get(problem.code, problem.code)
    if (problem.code, param) == ("not_found", "model"):
        code = "model_not_found"
    error = OpenAIError(error=ErrorForm(message=message, type=_type(status), param=param, code=code))
    headers = dict(headers or {})
    if status == HTTPStatus.CONFLICT:
        headers["x-should-retry"] = "true" if "Retry-After" in headers else "false"
    return JSONResponse(error.model_dump(), status, headers)


def _type(status: int) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else "invalid_request_error"
