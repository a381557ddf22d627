"""The websocket example, served by uvicorn and used by real clients."""

import asyncio
import json
import re
import signal
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from helpers import environment, until, until_sync

websockets = pytest.importorskip("websockets", reason="needs velo[test]")
pytest.importorskip("uvicorn", reason="needs velo[test]")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
async def server():
    """Address and process of a server of the example."""
    command = ["-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0", "websocket:app"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stderr=asyncio.subprocess.PIPE, env=environment()
    )
    address = None
    async with asyncio.timeout(30):
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
    async with asyncio.timeout(20):
        code = await process.wait()
        said = (await draining).decode()
    # uvicorn ends itself by the signal once it has shut down.
    assert code in (0, -signal.SIGTERM), said
    assert "Traceback" not in said, said
    until_sync(lambda: not any(child.is_running() for child in children), 5)


async def status(address):
    def get():
        with urllib.request.urlopen(f"http://{address}/status") as answer:
            return json.load(answer)

    return await asyncio.to_thread(get)


async def device(address, level, count):
    """A device whose readings are about `level`, and one of them is not."""
    unusual = []
    async with websockets.connect(f"ws://{address}/readings") as socket:
        for number in range(count):
            value = level + number % 3 if number != count - 5 else level + 1000
            await socket.send(json.dumps({"value": value}))
            answer = json.loads(await socket.recv())
            assert answer["value"] == value
            if answer["unusual"]:
                unusual.append(number)
    return unusual


async def test_every_connection_has_a_stream_of_its_own(server):
    address, _ = server
    found = await asyncio.gather(*(device(address, 100 * n, 40) for n in range(8)))
    assert found == [[35]] * 8

    async def closed():
        return (await status(address))["open"] == 0

    async with asyncio.timeout(10):
        while not await closed():
            await asyncio.sleep(0.01)
    assert await status(address) == {"open": 0, "opened": 8, "readings": 320}


async def test_a_server_that_stops_closes_its_streams(server):
    """The fixture sees that it ends, quickly and quietly, with connections open."""
    address, _ = server
    async with websockets.connect(f"ws://{address}/readings") as socket:
        await socket.send('{"value": 1}')
        assert json.loads(await socket.recv())["unusual"] is False
        assert (await status(address))["open"] == 1
        server[1].send_signal(signal.SIGTERM)
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        await until(lambda: server[1].returncode is not None, 15)
