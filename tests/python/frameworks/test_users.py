"""The example of one service for all users, served by uvicorn and used by real clients."""

import asyncio
import json
import urllib.request

import pytest

from helpers import HANG, ROOT
from serving import served, status

websockets = pytest.importorskip("websockets", reason="needs velo-stream[test]")
pytest.importorskip("uvicorn", reason="needs velo-stream[test]")
pytest.importorskip("fastapi", reason="needs velo-stream[test]")


@pytest.fixture
async def address():
    async with served(ROOT / "examples", "users:app") as (address, _):
        yield address


async def call(address, method, path):
    def send():
        request = urllib.request.Request(f"http://{address}/users/{path}", method=method)
        with urllib.request.urlopen(request, timeout=HANG) as answer:
            return json.load(answer)

    return await asyncio.to_thread(send)


async def test_each_user_has_a_running_copy(address):
    async def user(name, amount):
        paid = [await call(address, "POST", f"{name}/payments/{amount}") for _ in range(4)]
        return [report["total"] for report in paid]

    totals = await asyncio.gather(*(user(f"u{n}", n) for n in range(1, 9)))
    assert totals == [[n, 2 * n, 3 * n, 4 * n] for n in range(1, 9)]
    report = await call(address, "POST", "u1/payments/100")
    assert report == {"total": 104.0, "unusual": True}
    assert (await status(address))["users"] == 8
    await call(address, "DELETE", "u1")
    assert await call(address, "POST", "u1/payments/100") == {"total": 100.0, "unusual": False}


async def test_a_user_who_listens(address):
    """Reports of what was sent by websocket come there; those of requests do not."""
    async with asyncio.timeout(HANG), websockets.connect(f"ws://{address}/users/ada") as socket:
        for number in range(1, 11):
            await socket.send("2")
            assert json.loads(await socket.recv())["total"] == 4 * number - 2
            report = await call(address, "POST", "ada/payments/2")
            assert report["total"] == 4 * number
