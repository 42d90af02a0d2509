"""The web page: `/`, and its files below `/web`.

The files need no key, for they are the same for everybody; all that is somebody's comes from `/v1`, with the key that
the page asks for. The policy lets the page load and ask nothing but this service, and run no script that does not lie
in a file here: what a job's name or log smuggles in would not be run, nor could it tell anybody.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Scope

DIRECTORY = Path(__file__).parents[1] / "web"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""`no-cache` asks each time whether a file has changed, so that a page never mixes two versions of the service."""

router = APIRouter(include_in_schema=False)


class _PageFiles(StaticFiles):
    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


@router.get("/")
def page() -> FileResponse:
    """The page, which loads all else."""
    return FileResponse(DIRECTORY / "index.html", headers=HEADERS)


def install(app: FastAPI) -> None:
    """Serve the page."""
    app.include_router(router)
    app.mount("/web", _PageFiles(directory=DIRECTORY), name="web")
