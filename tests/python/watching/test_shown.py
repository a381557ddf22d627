"""What a notebook shows of functions, streams, metrics and errors."""

from html.parser import HTMLParser

from functions import running_sum
from helpers import drain
from velo import _html
from velo.errors import EventTimeout


class Text(HTMLParser):
    """The cells of tables, the tags that were used, and whether all are closed."""

    def __init__(self, html):
        super().__init__()
        self.cells, self.tags, self._open = [], [], []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if "td" in self._open:
            self.cells[-1] += text

    @property
    def rows(self):
        return dict(zip(self.cells[::2], self.cells[1::2], strict=True))


async def test_a_function_shows_settings_and_counters(mode):
    function = running_sum.options(mode=mode, buffer=7)
    unused = Text(function._repr_html_())
    assert unused.rows["buffer"] == "7"
    assert "svg" not in unused.tags
    await function.run(range(1000))
    used = Text(function._repr_html_())
    assert used.rows["events"] == "1,000"
    assert "p99" in used.rows["latency"]
    assert used.tags.count("rect") >= 1


async def test_a_stream_and_its_metrics(mode):
    async with running_sum.options(mode=mode).open() as stream:
        await stream.send_batch([1, 2, 3])
        assert f"stream {stream.name}, open" in stream._repr_html_()
        await stream.end()
        assert await drain(stream) == [1, 3, 6]
        for html in (stream._repr_html_(), stream.metrics._repr_html_()):
            shown = Text(html)
            assert (shown.rows["events"], shown.rows["results"]) == ("3", "3")
            assert "svg" in shown.tags
    assert f"stream {stream.name}, closed" in stream._repr_html_()


def test_an_error_shows_what_it_knows_and_no_markup_of_its_values():
    error = EventTimeout("<b>x</b>", 3, 0.5)
    error.add_note("the key was <i>ann</i>")
    shown = Text(error._repr_html_())
    assert "b" in shown.tags  # the title
    assert "i" not in shown.tags
    assert shown.rows["stream"] == "'<b>x</b>'"
    assert shown.rows["event"] == "3"
    assert shown.rows["note"] == "the key was <i>ann</i>"


def test_a_histogram_has_a_bar_for_each_step_that_is_used():
    bounds = [0.001, 0.002, 0.005]
    drawn = _html.histogram(bounds, [0, 10, 0, 1])
    assert "up to 2 ms: 10" in drawn
    assert "above that: 1" in drawn
    assert _html.histogram(bounds, [0, 0, 0, 0]) == ""
