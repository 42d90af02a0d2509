"""Running a control plane: store, cluster, REST API, in one process until told to stop."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from service.api.app import assemble, create_app, open_backend, open_store
from service.api.server import Server
from service.settings import Settings
from service.store.key_text import new_api_key


def ensure_first_key(settings: Settings) -> str | None:
    """Make the first API key, if there is none yet.

    Returns:
        The key, to be shown this once; it also lies in `settings.api_key_path`, readable by its owner only.
    """
    with closing(open_store(settings)) as store:
        if store.has_keys():
            return None
        key = new_api_key()
        # the file first: a key that only the store knew, as a hash, could never be read again
        settings.api_key_path.touch(mode=0o600)
        settings.api_key_path.chmod(0o600)
        settings.api_key_path.write_text(key)
        store.add_key(key)
        return key


def serve(settings: Settings, host: str, port: int, tls: tuple[Path, Path] | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: of the control plane.
        host: address to listen on.
        port: likewise.
        tls: files of the certificate and its key, PEM; None serves plain HTTP.
    """
    with closing(open_store(settings)) as store, open_backend(settings) as backend:
        app = create_app(assemble(settings, store, backend))
        server = Server(
            uvicorn.Config(app, host=host, port=port, log_level="info", access_log=False, **_tls_options(tls))
        )
        with suppress(KeyboardInterrupt):  # the server has stopped when it raises it
            server.run()


def _tls_options(tls: tuple[Path, Path] | None) -> dict[str, Any]:
    return {} if tls is None else {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]}


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """Serve on a free port of loopback for as long as the block lasts; gives the URL."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with closing(open_store(settings)) as store, open_backend(settings) as backend, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(assemble(settings, store, backend))
        server = Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="api")
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
