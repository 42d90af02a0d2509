"""The server's secret, under which API keys are digested: a file that only its owner reads."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from service.errors import InvalidSettingsError

_LEAST_BYTES = 32


def load_secret(path: Path, *, may_create: bool) -> bytes:
    """The secret.

    Args:
        path: of its file.
        may_create: whether to make one where there is none; replicas must be given the same one.

    Raises:
        InvalidSettingsError: there is no file, others can read it, or it holds less than 32 bytes.
    """
    if may_create and not path.exists():
        _create(path)
    try:
        content = path.read_bytes().strip()
        others = path.stat().st_mode & 0o077
    except OSError as error:
        raise InvalidSettingsError(f"cannot read the server's secret: {error}", "SLEDDOG_SECRET_FILE") from error
    if others:
        raise InvalidSettingsError(f"{path} can be read by others; run `chmod 600 {path}`", "SLEDDOG_SECRET_FILE")
    if len(content) < _LEAST_BYTES:
        raise InvalidSettingsError(f"{path} holds less than {_LEAST_BYTES} bytes", "SLEDDOG_SECRET_FILE")
    return content


def _create(path: Path) -> None:
    """Whole or not at all, and by one process only: whoever is second takes the first one's."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(_LEAST_BYTES))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        temporary.unlink()
