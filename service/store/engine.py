"""The database behind the store: how it is opened, its schema brought up to date, and transactions made on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import Any, Self

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session

from service.errors import DatabaseUnavailableError, InvalidSettingsError, SchemaError
from service.spec.access import DEFAULT_PROJECT
from service.store.audit_row import INSERT_AUDIT, audit_row
from service.store.principal import Principal

MIGRATIONS = Path(__file__).parent / "migrations"
_SQLITE_BUSY_TIMEOUT_MS = 10_000
_POOL_SIZE = 40
"""Connections that are kept: as many as a service has threads, or it would open and close them under load."""
_RECORDS = "records"
"""Set in a session's `info` when its transaction writes into the record."""
_MIGRATION_LOCK = {
    # Python's driver begins a transaction before INSERT, but not before CREATE TABLE: half a schema would stay
    "sqlite": text("BEGIN IMMEDIATE"),
    "postgresql": text("SELECT pg_advisory_xact_lock(7533364)"),
}


def open_engine(url: str) -> Engine:
    """Connect to SQLite or PostgreSQL.

    SQLite is made durable and concurrent: write-ahead log, waits instead of failing, foreign keys. A connection to
    PostgreSQL is tried before it is used, so that a server that was started anew is no error.

    Raises:
        InvalidSettingsError: the URL is not of these.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:  # which may hold a password
        raise InvalidSettingsError("is no URL of a database", "--database-url") from None
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise InvalidSettingsError(f"{kind} is neither sqlite nor postgresql", "--database-url")
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed, pool_size=_POOL_SIZE, pool_pre_ping=kind == "postgresql")
    if kind == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: Any, _record: Any) -> None:
            for pragma in ("journal_mode=WAL", f"busy_timeout={_SQLITE_BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

    return engine


def migrate(engine: Engine) -> str:
    """Bring the schema to this version, wholly or not at all; safe to repeat, and to ask for by several at once.

    Returns:
        The schema's version from now on.

    Raises:
        DatabaseUnavailableError: the database does not answer.
        SchemaError: it is newer than this version of Sleddog.
    """
    _require_reachable(engine)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    known = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        connection.execute(_MIGRATION_LOCK[engine.dialect.name])
        _require_known(connection, known)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return str(known.get_current_head())


def require_current_schema(engine: Engine) -> None:
    """Refuse a database that is not as this version of Sleddog needs it.

    Raises:
        DatabaseUnavailableError: it does not answer.
        SchemaError: its schema is older, or newer; the message says what to do.
    """
    _require_reachable(engine)
    known = ScriptDirectory(str(MIGRATIONS))
    head = known.get_current_head()
    with engine.connect() as connection:
        found = _require_known(connection, known)
    if found != head:
        raise SchemaError(
            f"the database's schema is {found or 'empty'}, and this version of Sleddog needs {head}: "
            "run `sleddog migrate` with the same --database-url, once, while no older version is running"
        )


def _require_reachable(engine: Engine) -> None:
    try:
        engine.connect().close()
    except OperationalError as error:
        raise DatabaseUnavailableError(f"the database does not answer: {error.orig}") from None


def _require_known(connection: Connection, known: ScriptDirectory) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in {script.revision for script in known.walk_revisions()}:
        raise SchemaError(f"the database's schema, {found}, is newer than this version of Sleddog; install that one")
    return found


class Tables:
    """Some of the store's tables; the base of what reads and writes them.

    Args:
        engine: of a migrated database.
        secret: the server's, under which keys are digested.
        principal: who asks, and sees the things of their project only; None is the service itself, which sees all.
        turns: held by each transaction; by default a lock where the database is SQLite, whose writers would else look
            again and again whether they may, at growing intervals, and the unlucky ones for seconds.
    """

    def __init__(
        self,
        engine: Engine,
        secret: bytes,
        principal: Principal | None = None,
        turns: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._engine, self._secret, self._principal = engine, secret, principal
        self._turns = turns or (RLock() if self.is_embedded else nullcontext())

    def of(self, principal: Principal) -> Self:
        """The same for somebody who asks: of their project only, and what they change is recorded."""
        return type(self)(self._engine, self._secret, principal, self._turns)

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with self._turns, Session(self._engine, expire_on_commit=False) as session:
            with session.begin():
                yield session
            if self._principal is not None and session.info.get(_RECORDS):
                self._principal.origin.is_recorded = True

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """For what is read often: rows without a session, which takes longer to set up than they take to read."""
        with self._engine.connect() as connection:
            yield connection

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
            session.execute(INSERT_AUDIT, audit_row(self._principal.origin, self._principal, "done", target=target))
            session.info[_RECORDS] = True

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    @property
    def is_embedded(self) -> bool:
        """Whether the database is in this process: reading a row takes no longer than asking another thread to."""
        return self._engine.dialect.name == "sqlite"

    def ping(self) -> None:
        """Raise when the database does not answer."""
        with self._transaction() as session:
            session.execute(select(1))
