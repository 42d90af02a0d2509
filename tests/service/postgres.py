"""A real PostgreSQL, started by the tests in a temporary directory, reached by a socket there, and thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

START_TIMEOUT_S = 60.0
_ADMIN = "tester"


def find_programs() -> Path | None:
    """The directory of `initdb` and `postgres`; None where they are not installed."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return debian[-1].parent if debian else None


@contextmanager
def postgres_server(programs: Path) -> Iterator[str]:
    """Run a server for the block; gives the URL of a database, less its name."""
    directory = Path(tempfile.mkdtemp(prefix="sleddog-postgres-"))
    unprivileged: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        unprivileged = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(directory, "nobody", "nogroup")
    data = directory / "data"
    initdb = [programs / "initdb", "--pgdata", data, "--username", _ADMIN, "--auth", "trust", "--no-sync"]
    subprocess.run([*initdb, "--encoding", "UTF8"], check=True, capture_output=True, cwd=directory, **unprivileged)
    options = {"listen_addresses": "", "unix_socket_directories": directory, "fsync": "off", "max_connections": 200}
    flags = [f"--{name}={value}" for name, value in options.items()]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, *flags], stdout=log, stderr=log, cwd=directory, **unprivileged
        )
    url = f"postgresql://{_ADMIN}@/{{}}?host={directory}"
    try:
        _wait_for(url, process, directory / "log")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        shutil.rmtree(directory)


def run_sql(url: str, statement: str) -> None:
    """Run a statement that no transaction may hold, on the server's own database."""
    engine = create_engine(
        url.format("postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@contextmanager
def new_database(url: str, template: str) -> Iterator[str]:
    """A database that begins as another one is, and is dropped behind the block, whoever is still connected.

    Args:
        url: of the server, less the database's name.
        template: the other one.
    """
    name = f"test_{uuid.uuid4().hex}"
    run_sql(url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield url.format(name)
    run_sql(url, f"DROP DATABASE {name} WITH (FORCE)")


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            run_sql(url, "SELECT 1")
        except OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {log.read_text()}") from None
            time.sleep(0.1)
        else:
            return
