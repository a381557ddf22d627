"""The websocket example, served by uvicorn and used by real clients."""

import asyncio
import json
import signal
import sys

import pytest

from helpers import HANG, ROOT, environment, until
from pages import blocks
from serving import served, status

websockets = pytest.importorskip("websockets", reason="needs velo-stream[test]")
pytest.importorskip("uvicorn", reason="needs velo-stream[test]")

EXAMPLES = ROOT / "examples"


@pytest.fixture
async def server():
    """Address and process of a server of the example."""
    async with served(EXAMPLES, "websocket:app") as server:
        yield server


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

    async with asyncio.timeout(HANG):
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
        await until(lambda: server[1].returncode is not None)


async def test_the_guide_works_as_pasted(tmp_path):
    """Its server and its device print what the page says, on a port that is free."""
    page = {block.title: block for block in blocks(ROOT / "docs" / "guide" / "web.md")}
    (tmp_path / "app.py").write_text(page["app.py"].text)
    async with served(tmp_path, "app:app") as (address, _):
        there = "127.0.0.1:8000"
        assert there in page["device.py"].text
        (tmp_path / "device.py").write_text(page["device.py"].text.replace(there, address))
        device = await asyncio.create_subprocess_exec(
            sys.executable,
            tmp_path / "device.py",
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
        )
        async with asyncio.timeout(HANG):
            printed, _ = await device.communicate()
            assert printed.decode() == page["device.py"].expected
            while await status(address) != {"open": 0, "readings": 3}:
                await asyncio.sleep(0.01)
