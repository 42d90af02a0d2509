"""The database behind the store: how it is opened, its schema brought up to date, and transactions made on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.orm import Session

from service.spec.access import DEFAULT_PROJECT
from service.store.audit_row import audit_row
from service.store.principal import Principal

MIGRATIONS = Path(__file__).parent / "migrations"
_SQLITE_BUSY_TIMEOUT_MS = 10_000
_POOL_SIZE = 40
"""Connections that are kept: as many as a service has threads, or it would open and close them under load."""
_MIGRATION_LOCK = {
    # Python's driver begins a transaction before INSERT, but not before CREATE TABLE: half a schema would stay
    "sqlite": text("BEGIN IMMEDIATE"),
    "postgresql": text("SELECT pg_advisory_xact_lock(7533364)"),
}


def open_engine(url: str) -> Engine:
    """Connect, with SQLite made durable and concurrent: write-ahead log, waits instead of failing, foreign keys."""
    engine = create_engine(url, pool_size=_POOL_SIZE)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: Any, _record: Any) -> None:
            for pragma in ("journal_mode=WAL", f"busy_timeout={_SQLITE_BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema to this version, wholly or not at all; safe to repeat, and to ask for twice at a time."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        connection.execute(_MIGRATION_LOCK[engine.dialect.name])
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


class Tables:
    """Some of the store's tables; the base of what reads and writes them.

    Args:
        engine: of a migrated database.
        secret: the server's, under which keys are digested.
        principal: who asks, and sees the things of their project only; None is the service itself, which sees all.
    """

    def __init__(self, engine: Engine, secret: bytes, principal: Principal | None = None) -> None:
        self._engine, self._secret, self._principal = engine, secret, principal

    def of(self, principal: Principal) -> Self:
        """The same for somebody who asks: of their project only, and what they change is recorded."""
        return type(self)(self._engine, self._secret, principal)

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @property
    def _project(self) -> str:
        """Where new things belong."""
        return DEFAULT_PROJECT if self._principal is None else self._principal.project

    def _record(self, session: Session, target: str | None = None) -> None:
        """Write who does this into the record, in the transaction that does it.

        Args:
            session: of that transaction.
            target: path of what is changed, where it is not the request's own.
        """
        if self._principal is not None:
            session.add(audit_row(self._principal.origin, self._principal, "done", target=target))

    def ping(self) -> None:
        """Raise when the database does not answer."""
        with self._transaction() as session:
            session.execute(select(1))
