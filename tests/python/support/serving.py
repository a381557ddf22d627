"""A web application of the examples, served by uvicorn."""

import asyncio
import contextlib
import json
import re
import signal
import sys
import urllib.request

import psutil

from helpers import HANG, environment, until_sync


@contextlib.asynccontextmanager
async def served(folder, app, *options):
    """Serve an application of a folder; gives the address and the process.

    Sees that it stops in time, without a traceback, and leaves nothing behind.
    """
    command = ["-m", "uvicorn", "--app-dir", str(folder), "--port", "0", *options, app]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stderr=asyncio.subprocess.PIPE, env=environment()
    )
    address = None
    async with asyncio.timeout(HANG):
        while address is None:
            line = (await process.stderr.readline()).decode()
            assert line, "the server has ended"
            found = re.search(r"running on http://(\S+)", line)
            address = found and found[1]
    draining = asyncio.create_task(process.stderr.read())
    server = psutil.Process(process.pid)
    yield address, process
    children = server.children(recursive=True) if process.returncode is None else []
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(HANG):
        code = await process.wait()
        said = (await draining).decode()
    # uvicorn ends itself by the signal once it has shut down.
    assert code in (0, -signal.SIGTERM), said
    assert "Traceback" not in said, said
    until_sync(lambda: not any(child.is_running() for child in children))


async def status(address):
    """What the application says at `/status`."""

    def get():
        with urllib.request.urlopen(f"http://{address}/status") as answer:
            return json.load(answer)

    return await asyncio.to_thread(get)
