"""The example of carts: several server processes, one conversation with each user."""

import asyncio
import json
import urllib.request

import pytest

from helpers import HANG, ROOT
from serving import served
from standalone import Daemon

pytest.importorskip("uvicorn", reason="needs velo-stream[test]")
pytest.importorskip("fastapi", reason="needs velo-stream[test]")

EXAMPLES = ROOT / "examples"


@pytest.fixture
async def address(tmp_path, monkeypatch):
    """Where two processes serve the example, on one supervisor."""
    daemon = Daemon(tmp_path / "s.sock", "--workers", 2)
    monkeypatch.setenv("VELO_SUPERVISOR", str(daemon.path))
    try:
        async with served(EXAMPLES, "cart:app", "--workers", "2") as (address, _):
            async with asyncio.timeout(HANG):
                while not await listens(address):  # it is said before they do
                    await asyncio.sleep(0.05)
            yield address
    finally:
        daemon.close()
    assert not daemon.seen_alive()


async def listens(address):
    """Whether a process of the server is there."""
    host, port = address.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def call(address, method, path):
    """One request on a connection of its own, so that any process may get it."""

    def send():
        request = urllib.request.Request(f"http://{address}/carts/{path}", method=method)
        with urllib.request.urlopen(request, timeout=HANG) as answer:
            return json.load(answer)

    return await asyncio.to_thread(send)


async def test_every_process_finds_the_same_cart(address):
    servers = set()
    async with asyncio.timeout(HANG):
        added = 0
        while len(servers) < 2 or added < 40:
            answers = await asyncio.gather(
                *(call(address, "POST", f"{user}/tea") for user in ["ada"] * 8 + ["eve"] * 4)
            )
            added += 8
            servers |= {answer["served_by"] for answer in answers}
            assert max(answer["cart"]["tea"] for answer in answers[:8]) == added
    assert sorted(answer["cart"]["tea"] for answer in answers[:8]) == list(
        range(added - 7, added + 1)
    )
    assert (await call(address, "GET", "eve"))["cart"] == {"tea": added // 2}
    assert (await call(address, "DELETE", "ada"))["bought"] == {"tea": added}
    assert (await call(address, "POST", "ada/milk"))["cart"] == {"milk": 1}
