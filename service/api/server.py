"""The HTTP server, which ends its streams before it waits for its connections to close."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from service.api.dependencies import ControlPlane

GRACE_S = 5
"""Seconds for answers under way. A browser that comes back at the last moment is cut off then."""


class Server(uvicorn.Server):
    """Serves an app that `service.api.app.create_app` made; a follower of a run does not keep it from stopping."""

    def __init__(self, config: uvicorn.Config) -> None:
        config.timeout_graceful_shutdown = config.timeout_graceful_shutdown or GRACE_S
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then stop as usual."""
        parts: ControlPlane = self.config.app.state.control_plane  # type: ignore[union-attr]
        parts.end_streams()
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # what outlasts the grace would stay open as long as the process
        await asyncio.sleep(0)  # they are closed now
