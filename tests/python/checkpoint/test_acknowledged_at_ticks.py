"""Records that come once, with a checkpoint that has no event journal: one in an object store."""

import json

import pytest
from click.testing import CliRunner

from replayed import Once, TakingBack, by_key, expected, sequence
from velo._api import ticks
from velo._diagnostics import failpoints
from velo.cli.checkpoint import checkpoint
from velo.connect.memory import MemorySink

obstore = pytest.importorskip("obstore")
from obstore.store import MemoryStore  # noqa: E402

# Its threads and their descriptors last from the first call on, so that they are no leak of a test.
obstore.list(MemoryStore()).collect()


class Crash(Exception):
    """The process dies here."""


@pytest.fixture
def url(tmp_path):
    """A checkpoint in an object store."""
    yield f"{tmp_path.as_uri()}/store?cache={tmp_path}/cache"
    failpoints.hook = None


async def test_with_an_object_store_records_are_acknowledged_at_ticks(mode, url):
    def dies(area, step):
        assert area != "journal"
        if (area, step) == ("tick", 5):
            assert source.acknowledged == 0
            raise Crash

    events, sink = [{"k": n % 7, "v": n} for n in range(20)], TakingBack()
    source = Once(list(events))
    source.stable = True
    fn = sequence.options(mode=mode)
    failpoints.hook = dies
    with pytest.raises(Crash):
        await fn.keyed(source, key="k").into(sink, checkpoint=url)
    failpoints.hook = None
    sink, again = TakingBack(sink.kept), Once(list(events))
    again.stable = True
    await fn.keyed(again, key="k").into(sink, checkpoint=url)
    assert by_key(sink.kept) == expected(events)
    assert again.acknowledged == 20


async def test_with_an_object_store_few_positions_are_remembered(url, monkeypatch):
    def dies(area, step):
        if (area, step) == ("tick", 6):
            raise Crash

    failpoints.hook = dies
    monkeypatch.setattr(ticks, "_MOST_UNMET", 7)
    for first in range(0, 60, 5):
        source = Once([{"k": 0, "v": 0}] * 5)
        source.stable, source.given = True, first
        run = sequence.keyed(source, key="k")
        with pytest.raises(Crash):
            await run.into(MemorySink(), checkpoint=url, checkpoint_every=60)
    looked = CliRunner().invoke(checkpoint, ["inspect", url, "--json"])
    (position,) = json.loads(looked.stdout)["positions"]
    assert position["ahead"] == 7 + 5
