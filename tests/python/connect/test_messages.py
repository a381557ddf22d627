"""Accepted WebSockets as sources and sinks: FastAPI on uvicorn, and the server of `websockets`."""

import asyncio
import contextlib

import pytest

from helpers import HANG
from servers.asgi import asgi_server
from velo import connect, stream_fn
from velo.connect.errors import Disconnected

client = pytest.importorskip("websockets.asyncio.client")
server_of = pytest.importorskip("websockets.asyncio.server")
fastapi = pytest.importorskip("fastapi")


@stream_fn
async def totals(numbers):
    total = 0
    async for number in numbers:
        total += number
        yield total


@contextlib.asynccontextmanager
async def fastapi_server(endpoint, accept=True):
    app = fastapi.FastAPI()

    @app.websocket("/")
    async def serve(websocket: fastapi.WebSocket):
        if accept:
            await websocket.accept()
        await endpoint(websocket)

    async with asgi_server(app) as port:
        yield f"ws://127.0.0.1:{port}/"


@contextlib.asynccontextmanager
async def websockets_server(endpoint):
    async with server_of.serve(endpoint, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/"


@pytest.fixture(params=[fastapi_server, websockets_server], ids=["fastapi", "websockets"])
def serve(request):
    return request.param


async def test_a_function_answers_on_the_same_socket(serve):
    ended = asyncio.get_running_loop().create_future()

    async def endpoint(websocket):
        messages = connect.messages(websocket)
        ended.set_result((await totals.over(messages).into(messages), messages))

    async with serve(endpoint) as url:
        async with client.connect(url) as socket:
            for number in range(1, 101):
                await socket.send(str(number))
                assert await socket.recv() == str(number * (number + 1) // 2)
        figures, messages = await ended
    assert (figures.read, figures.results) == (100, 100)
    assert messages.code == 1000


async def test_formats_of_messages(serve):
    async def endpoint(websocket):
        messages = connect.messages(websocket, decode=len, encode="bytes")
        await messages.write([(None, b"first")])
        async for (record,) in messages:
            await messages.write([(None, b"%d" % record.value)])

    async with serve(endpoint) as url, client.connect(url) as socket:
        assert await socket.recv() == b"first"
        for message, answer in (("äö", b"4"), (b"abc", b"3"), ("", b"0"), (b"", b"0")):
            await socket.send(message)
            assert await socket.recv() == answer


async def test_bad_messages_do_not_end_the_others(serve):
    async def endpoint(websocket):
        messages = connect.messages(websocket)
        await totals.over(messages).into(messages, on_bad="drop")

    async with serve(endpoint) as url, client.connect(url) as socket:
        for message in ("1", "{broken", "2"):
            await socket.send(message)
        assert [await socket.recv(), await socket.recv()] == ["1", "3"]


async def test_a_client_that_breaks_off_ends_the_source(serve):
    ended = asyncio.get_running_loop().create_future()

    async def endpoint(websocket):
        messages = connect.messages(websocket)
        ended.set_result([record.value async for (record,) in messages])

    async with serve(endpoint) as url:
        socket = await client.connect(url)
        await socket.send("7")
        await (await socket.ping())
        socket.transport.abort()
        async with asyncio.timeout(HANG):
            assert await ended in ([7], [])
        await socket.wait_closed()


async def test_results_for_a_client_that_has_gone_are_an_error(serve):
    ended = asyncio.get_running_loop().create_future()

    async def endpoint(websocket):
        messages = connect.messages(websocket)
        async for _ in messages:
            pass
        with pytest.raises(Disconnected, match=r"127\.0\.0\.1:.* code 1000.*: 2 results"):
            await messages.write([(None, 1), (None, 2)])
        ended.set_result(None)

    async with serve(endpoint) as url:
        await (await client.connect(url)).close()
        async with asyncio.timeout(HANG):
            await ended


async def test_a_client_that_goes_while_results_are_sent(serve):
    ended = asyncio.get_running_loop().create_future()

    async def endpoint(websocket):
        messages = connect.messages(websocket, encode="text")
        try:
            while True:
                await messages.write([(None, "x" * 10_000)])
                await asyncio.sleep(0)
        except Disconnected as error:
            ended.set_result(error)

    async with serve(endpoint) as url:
        socket = await client.connect(url)
        await socket.recv()
        socket.transport.abort()
        async with asyncio.timeout(HANG):
            assert "results were not sent" in str(await ended)
        await socket.wait_closed()


async def test_stop_ends_the_source_and_not_the_socket(serve):
    async def endpoint(websocket):
        messages = connect.messages(websocket)
        async for _ in messages:
            messages.stop()
        await messages.close()
        await connect.messages(websocket).write([(None, "open")])

    async with serve(endpoint) as url, client.connect(url) as socket:
        await socket.send("1")
        assert await socket.recv() == '"open"'


async def test_a_socket_that_was_not_accepted_is_an_error():
    errors = []

    async def endpoint(websocket):
        try:
            connect.messages(websocket)
        except ValueError as error:
            errors.append(error)
        await websocket.accept()

    async with fastapi_server(endpoint, accept=False) as url, client.connect(url):
        assert "accept()" in str(errors[0])


def test_what_is_no_socket_is_an_error():
    with pytest.raises(TypeError, match=r"a str is no open WebSocket.*connect\.websocket"):
        connect.messages("ws://host/")
