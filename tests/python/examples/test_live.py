"""The live page, in a real browser: what it shows is what its stream found, and it comes back."""

import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import signal

import psutil
import pytest
import pytest_asyncio

from browsing import how, needs_chromium
from helpers import HANG, ROOT
from serving import served, status

playwright = pytest.importorskip("playwright.async_api", reason="needs velo-stream[test]")
pytest.importorskip("fastapi", reason="needs velo-stream[test]")
pytest.importorskip("uvicorn", reason="needs velo-stream[test]")
pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]

LIVE = ROOT / "examples" / "live"
# How much of the chart is neither background nor grid: pixels of strong colour.
INK = """() => {
    const canvas = document.getElementById("chart");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let ink = 0;
    for (let at = 0; at < data.length; at += 4)
        if (data[at + 3] > 200 && Math.max(data[at], data[at + 1], data[at + 2])
            - Math.min(data[at], data[at + 1], data[at + 2]) > 60) ink++;
    return ink;
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address():
    """Where the page is served."""
    async with served(LIVE, "app:app") as (address, _):
        yield address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(tmp_path_factory):
    """A browser with nothing in it."""
    async with playwright.async_playwright() as engine:
        profile = tmp_path_factory.mktemp("profile")
        browser = await engine.chromium.launch_persistent_context(**how(profile))
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def open_tab(address, browser):
    """Opens a tab of the page. What goes wrong in one, or leaves the machine, fails the test."""
    tabs, wrong = [], []

    async def tab():
        page = await browser.new_page()
        tabs.append(page)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: wrong.append(asked.url) if foreign(asked.url) else None)
        page.on("websocket", lambda socket: listen(page, socket))
        await page.goto(f"http://{address}/")
        await shows(page, "state", "text === 'connected'")
        return page

    def foreign(url):
        return f"//{address}/" not in url and not url.startswith("data:")

    yield tab
    for page in tabs:
        await page.close()
    await open_streams(address, 0)
    assert wrong == []


async def open_streams(address, count):
    """Wait until so many streams are open."""
    async with asyncio.timeout(HANG):
        while (await status(address))["open"] != count:
            await asyncio.sleep(0.01)


@pytest.fixture
def monitor():
    """The stream function of the page, to be called by hand."""
    spec = importlib.util.spec_from_file_location("live_app", LIVE / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    return app.monitor


def listen(page, socket):
    """Note what a tab's current websocket carries."""
    page.frames_sent, page.frames_received = sent, received = [], []
    socket.on("framesent", lambda frame: sent.append(json.loads(frame)))
    socket.on("framereceived", lambda frame: received.append(json.loads(frame)))


async def shows(page, element, condition):
    """Wait until the text of an element is as it should be; returns it."""
    script = f"""() => {{
        const text = document.getElementById("{element}").textContent;
        return {condition} && text;
    }}"""
    return await (await page.wait_for_function(script, timeout=20_000)).json_value()


async def test_a_tab_draws_what_its_stream_found(open_tab):
    page = await open_tab()
    await shows(page, "count", "Number(text) > 40")
    await page.wait_for_function(f"({INK})() > 200")
    before = int(await page.inner_text("#found"))
    await page.click("#disturb")
    await shows(page, "found", f"Number(text) > {before + 2}")

    stream = await page.inner_text("#stream")
    await page.check("input[value=pointer]", force=True)
    await shows(page, "stream", f"text !== '{stream}'")
    for step in itertools.count():
        await page.mouse.move(step * 30 % 900, 200)
        if any(answer.get("value") for answer in page.frames_received):
            break  # it has seen the pointer move


async def test_each_tab_has_a_stream_of_its_own(address, open_tab, monitor):
    """What comes back to a tab is what the function gives for what that tab has sent."""
    tabs = [await open_tab() for _ in range(2)]
    for tab in tabs:
        await tab.bring_to_front()
        await shows(tab, "count", "Number(text) > 30")
        await tab.click("#disturb")
        await shows(tab, "found", "Number(text) > 2")
    names = set()
    for tab in tabs:
        head, *answers = list(tab.frames_received)
        names.add(head["stream"])
        samples = tab.frames_sent[: len(answers)]
        assert len(samples) == len(answers) > 30
        expected = [answer async for answer in monitor(samples)]
        workers = {answer.pop("worker") for answer in answers}
        assert workers.isdisjoint(answer.pop("worker") for answer in expected)
        assert answers == expected
    assert len(names) == 2
    assert (await status(address))["open"] == 2
    await tabs[1].close()
    await open_streams(address, 1)


async def test_a_tab_comes_back_when_its_worker_dies(open_tab):
    page = await open_tab()
    await shows(page, "count", "Number(text) > 10")
    worker, stream = [await page.inner_text(f"#{name}") for name in ("worker", "stream")]
    with contextlib.suppress(psutil.NoSuchProcess):
        os.kill(int(worker), signal.SIGKILL)
    await shows(page, "stream", f"text !== '{stream}'")
    await shows(page, "worker", f"text !== '{worker}'")
    assert await shows(page, "state", "text === 'connected'")
    await shows(page, "count", "Number(text) > 10")
    assert page.frames_received[1]["count"] == 1  # it began anew
