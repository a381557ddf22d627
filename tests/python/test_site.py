"""The site is built from the docs as they are, and asks nothing of other hosts."""

import importlib.util
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from pages import ROOT

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))),
    reason="needs velo[docs]",
)
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
        timeout=50,
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
        ("functions", "velo.StreamFn.keyed", "Run one stream per key"),
        ("functions", "velo.StreamFn.__or__", "Compose"),
        ("functions", "velo.stream_fn", "Make a stream function"),
        ("streams", "velo.Stream.send", "A cancelled send has sent nothing"),
        ("streams", "velo.Stream.recv_batch", "When max is less than 1"),
        ("streams", "velo.Stream.__aiter__", "Iterate over all results"),
        ("settings", "velo.StreamConfig", "How many events may be sent"),
        ("metrics", "velo.StreamMetrics.latency_p50", "microseconds"),
        ("events", "velo.events.TICK", "no event came for so long"),
        ("errors", "velo.errors.WorkerDied", "The number of the signal that ended it"),
        ("logs", "velo.logs.StreamNames", "Lets every record pass"),
    ],
)
def test_the_reference_has_the_docstrings(site, page, name, said):
    assert said in Page((site / "reference" / f"{page}.html").read_text()).below[name]
