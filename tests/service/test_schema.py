"""The database: what it must be for a service to start on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from typer.testing import CliRunner

from service.api.app import open_store
from service.cli import app
from service.errors import InvalidSettingsError, SchemaError
from service.settings import Settings
from service.store.engine import migrate, open_engine, require_current_schema
from tests.service.postgres import run_sql

runner = CliRunner()


@pytest.fixture
def empty(postgres: str) -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    run_sql(postgres, "CREATE DATABASE empty TEMPLATE template0")
    yield postgres.format("empty")
    run_sql(postgres, "DROP DATABASE empty WITH (FORCE)")


@pytest.mark.postgres
def test_a_service_starts_on_a_database_only_after_it_was_migrated(empty: str, tmp_path: Path) -> None:
    settings = Settings(tmp_path, database_url=empty)
    with pytest.raises(SchemaError, match=r"schema is empty, and this version .* run `sleddog migrate`"):
        open_store(settings)
    for _ in range(2):
        migrated = runner.invoke(app, ["migrate", "--database-url", empty, "--data-dir", str(tmp_path)])
        assert migrated.exit_code == 0, migrated.output
        assert "The database has schema 0" in migrated.output
    with closing(open_store(settings)) as store:
        store.ping()


@pytest.mark.postgres
def test_several_may_migrate_at_once(empty: str) -> None:
    failures = []

    def run() -> None:
        engine = open_engine(empty)
        try:
            migrate(engine)
        except SQLAlchemyError as error:
            failures.append(error)
        engine.dispose()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    engine = open_engine(empty)
    require_current_schema(engine)
    engine.dispose()


def test_a_schema_of_another_version_is_told(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(SchemaError, match="schema is 0001, and this version of Sleddog needs 0"):
        require_current_schema(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for check in (require_current_schema, migrate):
        with pytest.raises(SchemaError, match="9999, is newer than this version"):
            check(engine)


@pytest.mark.parametrize("command", ["migrate", "serve"])
def test_a_database_that_is_not_there_is_told_in_one_line(tmp_path: Path, command: str) -> None:
    nowhere = "postgresql://me:not-to-be-shown@127.0.0.1:1/sleddog"
    result = runner.invoke(app, [command, "--database-url", nowhere, "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "sleddog: the database does not answer: connection" in result.output
    assert "not-to-be-shown" not in result.output
    assert "Traceback" not in result.output


def test_an_embedded_database_migrates_itself(tmp_path: Path) -> None:
    with closing(open_store(Settings(tmp_path / "data"))) as store:
        require_current_schema(store._engine)


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:hunter2@h/d", "nosuch://u:hunter2@h/d"])
def test_a_url_of_no_known_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        open_engine(url)
    assert caught.value.field == "--database-url"
    assert "hunter2" not in str(caught.value)
