"""`velo dashboard`: what it answers, and to whom."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from browsing import how, needs_chromium
from functions import running_sum
from helpers import HANG, environment, until
from standalone import Daemon
from velo._checkpoint.store import Store
from velo.cli.dashboard.history import History
from velo.errors import StreamClosed

pytest.importorskip("starlette", reason="needs velo-stream[dashboard]")
pytest.importorskip("uvicorn", reason="needs velo-stream[dashboard]")

function = running_sum.options(mode="process", workers=1)


class Dashboard:
    """A dashboard that runs, and what asks it."""

    def __init__(self, process, address):
        self.process = process
        self.address = address
        self.base, _, self.token = address.partition("/?token=")
        self.headers = {"authorization": f"Bearer {self.token}"}

    async def get(self, path, **more):
        async with httpx.AsyncClient(timeout=HANG) as client:
            return await client.get(f"{self.base}{path}", **{"headers": self.headers, **more})

    async def post(self, path, body, **more):
        async with httpx.AsyncClient(timeout=HANG) as client:
            return await client.post(
                f"{self.base}{path}", json=body, **{"headers": self.headers, **more}
            )

    async def looks(self, query=""):
        """Each look that the server sends, behind the history."""
        async with (
            httpx.AsyncClient(timeout=HANG) as client,
            client.stream("GET", f"{self.base}/events?{query}", headers=self.headers) as answer,
        ):
            assert answer.headers["content-type"].startswith("text/event-stream")
            name = None
            async for line in answer.aiter_lines():
                kind, _, value = line.partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data" and name == "look":
                    yield json.loads(value)

    async def look(self, fits=lambda look: True, query=""):
        """The first look that fits."""
        async with asyncio.timeout(HANG), contextlib.aclosing(self.looks(query)) as looks:
            async for look in looks:
                if fits(look):
                    return look

    async def inspected(self, query):
        """The only stream that fits, once its worker has had the turn to answer."""
        async with asyncio.timeout(HANG):
            while not (found := (await self.get("/inspect", params=query)).json()["streams"]):
                await asyncio.sleep(0.01)
        (one,) = found
        return one


@contextlib.asynccontextmanager
async def served(*words):
    """Runs the command; it must end at once by SIGINT, and say nothing but its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "velo", "dashboard", "--port", "0", *map(str, words),
        stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        async with asyncio.timeout(HANG):
            said = (await process.stderr.readline()).decode()
            yield Dashboard(process, re.search(r"http://\S+", said)[0])
            process.send_signal(signal.SIGINT)
            assert (await process.stderr.read()).decode() == ""
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A supervisor that the streams of this test use, and the dashboard looks at."""
    path = tmp_path / "s.sock"
    monkeypatch.setenv("VELO_SUPERVISOR", str(path))
    daemon = Daemon(path, "--workers", 2)
    yield daemon
    daemon.close()


@contextlib.asynccontextmanager
async def counting(*events):
    """A stream that has handled these events."""
    async with function.open() as stream:
        for event in events:
            await stream.send(event)
            await stream.recv()
        yield stream


def shows(name):
    return lambda look: name in [stream["name"] for stream in look["streams"]]


async def test_only_who_has_the_token_gets_an_answer(daemon):
    async with served("--socket", daemon.path) as dashboard:
        for path in ("/", "/events", "/inspect?stream=a", "/dashboard.js", "/end", "/nothing"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": "velo=1"}):
                answer = await dashboard.get(path, headers=headers)
                assert answer.status_code == 403
                assert dashboard.token not in answer.text
        assert (await dashboard.get("/?token=wrong", headers={})).status_code == 403
        assert "has printed" in (await dashboard.get("/", headers={})).text


async def test_the_token_becomes_a_cookie_that_may_look_and_not_order(daemon):
    async with served("--socket", daemon.path) as dashboard, httpx.AsyncClient() as client:
        answer = await client.get(dashboard.address)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        kept = answer.headers["set-cookie"]
        assert "HttpOnly" in kept
        assert "SameSite=strict" in kept
        page = await client.get(f"{dashboard.base}/")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "no-referrer" in page.headers["referrer-policy"]
        for name in re.findall(r'(?:href|src)="([\w.]+)"', page.text):
            assert (await client.get(f"{dashboard.base}/{name}")).status_code == 200
        order = {"socket": str(daemon.path), "stream": "1:1"}
        assert (await client.post(f"{dashboard.base}/end", json=order)).status_code == 403


async def test_other_hosts_and_origins_are_refused(daemon):
    async with served("--socket", daemon.path) as dashboard:
        headers = {**dashboard.headers, "host": "evil.example"}
        assert (await dashboard.get("/", headers=headers)).status_code == 421
        headers = {**dashboard.headers, "origin": "http://evil.example"}
        assert (await dashboard.get("/", headers=headers)).status_code == 403
        assert (await dashboard.post("/end", {}, headers=headers)).status_code == 403
        port = dashboard.base.rpartition(":")[2]
        headers = {**dashboard.headers, "host": f"localhost:{port}"}
        assert (await dashboard.get("/", headers=headers)).status_code == 200


async def test_it_shows_what_runs(daemon):
    async with served("--socket", daemon.path) as dashboard, counting(1, 2, 3) as stream:
        look = await dashboard.look(shows(stream.name))
        (shown,) = look["streams"]
        assert (shown["events"], shown["queued"]) == (3, 0)
        assert shown["function"] == "functions:running_sum"
        (function,) = look["functions"]
        assert (function["streams"], function["events"]) == (1, 3)
        assert look["point"]["streams"] == 1
        assert [worker["pid"] for worker in look["workers"]].count(shown["pid"]) == 1
        assert look["nothing"] is None
        await stream.send(4)
        await stream.recv()
        await dashboard.look(lambda look: look["streams"][0]["events"] == 4)


async def test_streams_are_searched_and_sorted(daemon):
    async with (
        served("--socket", daemon.path) as dashboard,
        counting(1) as few,
        counting(1, 2, 3) as many,
        function.open(key="ann") as ann,
    ):
        await ann.send(1)
        await ann.recv()
        names = [stream.name for stream in (many, few)]

        async def first_two(query):
            look = await dashboard.look(
                # A look goes without the names of a worker that has no turn for 500 ms.
                lambda look: look["found"] == 3 and all(one["name"] for one in look["streams"]),
                query,
            )
            shown = [stream["name"] for stream in look["streams"]]
            return [name for name in shown if name in names]

        assert await first_two("sort=events") == names
        assert await first_two("sort=events&turned=1") == names[::-1]
        assert await first_two("sort=name") == sorted(names)
        look = await dashboard.look(lambda look: look["found"] == 1, "find=ann")
        assert [stream["key"] for stream in look["streams"]] == ["ann"]
        assert look["open"] == 3


async def test_it_looks_into_a_stream_and_a_key(daemon):
    async with served("--socket", daemon.path) as dashboard, counting(1, 2) as stream:
        (shown,) = (await dashboard.look(shows(stream.name)))["streams"]
        query = {"stream": shown["address"], "socket": shown["socket"]}
        found = await dashboard.inspected(query)
        assert found["name"] == stream.name
        assert found["locals"]["total"] == "3"
        async with function.options(timeout=None).keys() as keys:
            assert await keys.request("eve", 7) == [7]
            assert (await dashboard.inspected({"stream": "eve"}))["locals"]["total"] == "7"
        query = {"stream": "nobody"}
        assert (await dashboard.get("/inspect", params=query)).json()["streams"] == []


async def test_it_ends_a_stream(daemon):
    async with served("--socket", daemon.path) as dashboard, counting(1) as stream:
        (shown,) = (await dashboard.look(shows(stream.name)))["streams"]
        order = {"socket": shown["socket"], "stream": shown["address"]}
        assert (await dashboard.post("/end", {"stream": "x"})).status_code == 400
        assert (await dashboard.get("/end")).status_code == 405
        assert (await dashboard.post("/end", order)).json() == {"ended": True}
        with pytest.raises(StreamClosed, match="velo dashboard"):
            await stream.recv()
        await dashboard.look(lambda look: look["streams"] == [])
        assert (await dashboard.post("/end", order)).json() == {"ended": False}


async def test_deaths_and_recoveries(daemon):
    recovering = function.options(workers=2, recover="replay")
    async with served("--socket", daemon.path) as dashboard, recovering.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        looks = dashboard.looks()
        async with asyncio.timeout(HANG), contextlib.aclosing(looks):
            async for look in looks:
                if shows(stream.name)(look):
                    break
            os.kill(look["streams"][0]["pid"], signal.SIGKILL)
            await stream.send(2)
            assert await stream.recv() == 3
            async for look in looks:
                if look["point"]["deaths"] and look["point"]["recoveries"]:
                    break
        assert {one["kind"] for one in look["incidents"]} == {"death", "recovery"}
        assert [one["stream"] for one in look["incidents"] if one["kind"] == "recovery"] == [
            stream.name
        ]


@pytest.mark.parametrize("away", ["worker", "answer"])
def test_a_stream_that_a_look_does_not_see_is_still_recovered(away):
    history = History()
    history.take(looked(1, "one"))
    # Its worker is gone, and no other one has it yet; or it does not say what its streams are.
    history.take(looked(2) if away == "worker" else looked(1, None))
    last = history.take(looked(2, "one"))
    assert last["point"]["recoveries"] == 1
    assert last["incidents"][-1]["stream"] == "one"


def test_a_stream_that_has_ended_is_not_recovered():
    history = History()
    history.take(looked(1, "one"))
    history.take(looked(1))
    assert history.take(looked(2, "one"))["point"]["recoveries"] == 0


def looked(worker, *names):
    """A look that shows one worker, and its streams."""
    about = {"events_per_second": 0, "queued": 0, "residents": len(names), "pid": 7}
    flags = dict.fromkeys(("stopping", "retiring"), False)
    nothing = dict.fromkeys(("events_per_second", "latency_p50", "latency_p99", "keys"))
    stream = {**nothing, "client": 1, "worker": worker, "results_queued": 0, "pid": 7}
    state = {
        "socket": "s",
        "program": "p",
        "draining": False,
        "workers": [{"id": worker, **about, **flags}],
        "streams": [{**stream, "name": name, "function": "f"} for name in names],
    }
    return {"states": [state], "published": [], "sources": []}


async def test_nobody_is_asked_while_no_page_is_open(daemon):
    async with served("--socket", daemon.path) as dashboard:
        looks = dashboard.looks()
        await anext(looks)
        await looks.aclose()

        # The history of each new page ends where the last one was closed.
        async def history():
            async with (
                httpx.AsyncClient(timeout=HANG) as client,
                client.stream("GET", f"{dashboard.base}/events", headers=dashboard.headers) as got,
            ):
                async for line in got.aiter_lines():
                    if line.startswith("data: "):
                        return json.loads(line[6:])

        before = await history()
        assert before
        assert (await history())[: len(before)] == before


METRICS = """# TYPE velo_source_records counter
velo_source_records_total{function="shop:spent",source="orders"} 70
# TYPE velo_source_commits counter
velo_source_commits_total{function="shop:spent",source="orders"} 3
# TYPE velo_source_lag_records gauge
velo_source_lag_records{function="shop:spent",source="orders",partition="orders/0"} 5
velo_source_lag_records{function="shop:spent",source="orders",partition="orders/1"} 7
# TYPE velo_streams gauge
velo_streams{function="shop:cart",mode="inline"} 2
velo_streams{function="shop:spent",mode="process"} 9
"""


async def test_published_sources_are_shown(daemon):
    async def answer(reader, writer):
        asked = await reader.readuntil(b"\r\n\r\n")
        text = METRICS if b"/metrics" in asked else "velo_source_records_total 3\n"
        head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write((head + text).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    words = ["--metrics", f"127.0.0.1:{port}/metrics", "--metrics", "127.0.0.1:9/none"]
    words += ["--metrics", f"127.0.0.1:{port}/other", "--metrics", "file:///etc/passwd"]
    async with server, served("--socket", daemon.path, *words) as dashboard:
        # This test answers the dashboard; where it is late, a look goes without its sources.
        look = await dashboard.look(lambda look: look["sources"])
        (source,) = look["sources"]
        assert (source["source"], source["records"], source["commits"]) == ("orders", 70, 3)
        assert source["lag"] == {"orders/0": 5, "orders/1": 7}
        assert look["point"]["lag"] == 12
        inline = [one for one in look["functions"] if one["mode"] == "inline"]
        assert [(one["function"], one["streams"]) for one in inline] == [("shop:cart", 2)]
        assert [one["error"] is None for one in look["published"]] == [True, False, False, False]


async def test_a_checkpoint_is_shown(daemon, tmp_path):
    (tmp_path / "there").mkdir()
    Store(tmp_path / "there", writes=True).close()
    words = ["--checkpoint", tmp_path / "there", "--checkpoint", tmp_path / "no"]
    async with served("--socket", daemon.path, *words) as dashboard:
        there, none = (await dashboard.look())["checkpoints"]
        assert (there["path"], there["epoch"], there["keys"]) == (str(tmp_path / "there"), 0, 0)
        assert str(tmp_path / "no") in none["error"]


async def test_a_supervisor_that_ends_is_told(daemon):
    async with served("--socket", daemon.path) as dashboard:
        assert (await dashboard.look())["nothing"] is None
        daemon.close()
        look = await dashboard.look(lambda look: look["nothing"] is not None)
        assert str(daemon.path) in look["nothing"]


@needs_chromium
async def test_in_a_browser(daemon, tmp_path):
    playwright = pytest.importorskip("playwright.async_api", reason="needs velo-stream[test]")
    wrong = []
    async with (
        served("--socket", daemon.path) as dashboard,
        counting(1, 2) as stream,
        playwright.async_playwright() as engine,
    ):
        browser = await engine.chromium.launch_persistent_context(**how(tmp_path / "profile"))
        page = await browser.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((dashboard.base, "data:")) else wrong.append(asked.url)
            ),
        )
        await page.goto(dashboard.address)
        assert "token" not in page.url
        row = page.locator("#streams tbody tr", has_text=stream.name)
        await row.wait_for()
        await page.wait_for_selector(".chart path.line", state="attached")

        await page.keyboard.press("/")
        await page.keyboard.type("no such stream")
        await page.wait_for_selector("#streams-title:has-text('0 of 1')")
        await page.keyboard.press("Escape")
        await row.wait_for()

        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Enter")
        total = page.locator(".locals > div", has_text=re.compile("^total$")).locator("+ div")
        await total.wait_for()
        assert await total.inner_text() == "3"
        await stream.send(4)
        await stream.recv()
        await page.locator(".locals > div", has_text=re.compile("^7$")).wait_for()

        await page.click("#end")
        await page.click("#sure")
        await page.wait_for_selector("#said:has-text('ended')")
        with pytest.raises(StreamClosed):
            await stream.recv()
        await page.keyboard.press("Escape")
        await row.wait_for(state="detached")

        await page.set_viewport_size({"width": 390, "height": 844})
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width == 390
        before = await page.evaluate("document.documentElement.dataset.theme")
        await page.keyboard.press("t")
        assert await page.evaluate("document.documentElement.dataset.theme") != before
        await browser.close()
    assert wrong == []


def test_its_packages_are_named_where_they_lack(tmp_path):
    (tmp_path / "without.py").write_text(
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'starlette' else "
        "real(name, *more)\n"
        "sys.argv = ['velo', 'dashboard']\n"
        "from velo.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "without.py"],
        capture_output=True, text=True, env=environment(PYTHONHASHSEED="0"), timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 2
    assert "needs starlette: pip install 'velo-stream[dashboard]'" in done.stderr


async def test_a_port_that_is_taken(daemon):
    async with served("--socket", daemon.path) as dashboard:
        port = dashboard.base.rpartition(":")[2]
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "velo", "dashboard", "--port", port, "--socket", daemon.path,
            stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        said = (await done.stderr.read()).decode()
        assert await done.wait() == 2
        assert "already in use; `--port 0` takes a free port" in said
        await until(lambda: dashboard.process.returncode is None)
