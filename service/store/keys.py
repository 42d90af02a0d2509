"""API keys: made here, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime

from sqlalchemy import func, select

from service.store.engine import Tables
from service.store.models import ApiKeyRow


def new_api_key() -> str:
    """256 random bits, with a prefix that secret scanners can look for."""
    return f"sd-{secrets.token_urlsafe(32)}"


class KeyTables(Tables):
    """Who may use the service."""

    def has_keys(self) -> bool:
        """Whether any API key was made."""
        with self._transaction() as session:
            return session.scalar(select(func.count()).select_from(ApiKeyRow)) != 0

    def add_key(self, key: str) -> None:
        """Accept a key from now on; only its hash is kept."""
        with self._transaction() as session:
            session.add(ApiKeyRow(sha256=_sha256(key), created_at=datetime.now(UTC)))

    def knows_key(self, key: str) -> bool:
        """Whether the key is valid. Looking its hash up tells an attacker nothing about the key."""
        with self._transaction() as session:
            return session.get(ApiKeyRow, _sha256(key)) is not None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
