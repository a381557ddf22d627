"""An ASGI application, served by uvicorn in the event loop of a test."""

import asyncio
import contextlib

import uvicorn

from helpers import HANG, until

__all__ = ["asgi_server"]


@contextlib.asynccontextmanager
async def asgi_server(app, port=0):
    """Gives the port. Connections that are left at the end are broken off."""
    # By default it takes its older adapter of `websockets`, which is deprecated.
    config = uvicorn.Config(
        app, port=port, log_level="critical", ws="websockets-sansio", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())  # `serve` would take the signals of pytest
    await until(lambda: server.started or serving.done())
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        async with asyncio.timeout(HANG):
            await serving
