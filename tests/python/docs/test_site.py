"""The site is built from the docs as they are, and asks nothing of other hosts."""

import functools
import importlib.util
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from browsing import how, needs_chromium
from helpers import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))),
        reason="needs velo-stream[docs]",
    ),
]
# What a browser fetches by itself, and the attribute that says from where.
LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return target


class Page(HTMLParser):
    """What a page loads, the ids in it, and the text below each of them."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.below, self._id = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in LOADED and (target := attributes.get(LOADED[tag])):
            self.loads.append(target)
        if attributes.get("id"):
            self._id = attributes["id"]
            self.below[self._id] = ""

    def handle_data(self, data):
        if self._id:
            self.below[self._id] += data


def test_every_page_is_there_and_loads_nothing_from_other_hosts(site):
    names = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    for name in names:
        page = Page((site / name).with_suffix(".html").read_text())
        assert page.loads
        assert [target for target in page.loads if urlsplit(target).netloc] == []
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text()


@pytest.mark.parametrize(
    ("page", "name", "said"),
    [
        ("functions", "velo.StreamFn.keyed", "Run the function for each key"),
        ("functions", "velo.StreamFn.__or__", "Compose"),
        ("functions", "velo.stream_fn", "Make a stream function"),
        ("streams", "velo.Stream.send", "A cancelled send has sent nothing"),
        ("streams", "velo.Stream.recv_batch", "When max is less than 1"),
        ("streams", "velo.Stream.__aiter__", "Iterate over all results"),
        ("settings", "velo.StreamConfig", "How many events may be sent"),
        ("metrics", "velo.StreamMetrics.latency_p50", "microseconds"),
        ("events", "velo.events.TICK", "after that long without an event"),
        ("errors", "velo.errors.WorkerDied", "The number of the signal that ended it"),
        ("logs", "velo.logs.StreamNames", "Lets every record pass"),
    ],
)
def test_the_reference_has_the_docstrings(site, page, name, said):
    assert said in Page((site / "reference" / f"{page}.html").read_text()).below[name]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and does not tell."""

    def log_message(self, *_):
        pass


@pytest.fixture
def address(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@needs_chromium
def test_a_browser_finds_a_name_and_asks_no_other_host(address, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs velo-stream[test]")
    asked, wrong = [], []
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch_persistent_context(**how(tmp_path / "profile"))
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{address}index.html")
        page.wait_for_selector(
            ".md-search-result__meta:has-text('Type to start')", state="attached"
        )
        page.click("input[name=query]")
        page.keyboard.type("recv_batch")
        page.click(".md-search-result__item a:has-text('recv_batch')")
        page.wait_for_url("**/streams.html*#velo.Stream.recv_batch")
        page.goto(f"{address}semantics.html")
        folded = page.locator("details.promise-tests").first
        assert not folded.locator("code").first.is_visible()
        folded.locator("summary").click()
        assert folded.locator("code").first.inner_text().startswith("test_")
        browser.close()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert wrong == []
