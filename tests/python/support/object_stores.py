"""Object stores for checkpoints, and machines whose working copies are apart."""

import os
import urllib.request
import uuid
from pathlib import Path

import pytest

obstore = pytest.importorskip("obstore")
from obstore.store import MemoryStore  # noqa: E402

from velo._core import dumps  # noqa: E402

# Its threads and their descriptors last from the first call on, so that they are no leak of a test.
obstore.list(MemoryStore()).collect()

__all__ = ["Bucket", "Folder", "check", "has_written", "state", "ticks"]


class Place:
    """A prefix of a store, and folders in place of machines.

    Attributes:
        url: The prefix.

    Args:
        url: As the attribute.
        folder: Where machines have their working copies.
        settings: More of the URL.

    """

    def __init__(self, url, folder, **settings):
        self.url = url
        self._folder = folder
        self._settings = settings

    def on(self, machine="here", **settings):
        """The URL as a machine uses it."""
        given = {"cache": self._folder / machine, **self._settings, **settings}
        return f"{self.url}?{'&'.join(f'{name}={value}' for name, value in given.items())}"


class Folder(Place):
    """A folder as a store."""

    def __init__(self, folder, **settings):
        self.path = folder / "store" / "fraud"
        super().__init__(self.path.as_uri(), folder, **settings)

    def names(self):
        return sorted(os.listdir(self.path)) if self.path.exists() else []

    def file(self, start):
        """The path of the last object whose name starts so."""
        return self.path / [name for name in self.names() if name.startswith(start)][-1]


class Bucket(Place):
    """A new bucket of a server that speaks S3's protocol."""

    def __init__(self, port, folder, monkeypatch):
        for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "hunter2")):
            monkeypatch.setenv(f"AWS_{name}", value)
        self.endpoint = f"http://127.0.0.1:{port}"
        bucket = uuid.uuid4().hex
        super().__init__(
            f"s3://{bucket}/fraud", Path(folder), endpoint=self.endpoint, region="us-east-1"
        )
        login = {
            "Authorization": "AWS4-HMAC-SHA256 Credential=me/20260101/us-east-1/s3/aws4_request"
        }
        request = urllib.request.Request(f"{self.endpoint}/{bucket}", method="PUT", headers=login)
        urllib.request.urlopen(request).close()


def state(n, length=10):
    return dumps({"n": n, "text": "x" * length})


async def ticks(checkpoint, first, last, **settings):
    """Ticks, each of which changes its own key, and one that all have."""
    for epoch in range(first, last + 1):
        changes = {f"key-{epoch}": state(epoch), "all": state(epoch)}
        await checkpoint.commit(epoch, changes, {0: epoch}, {}, **settings)


def check(checkpoint, epoch):
    """It is at an epoch of `ticks`."""
    assert (checkpoint.epoch, checkpoint.positions) == (epoch, {0: epoch})
    keys = [f"key-{n}" for n in range(1, epoch + 2)]
    states = [state(n) for n in range(1, epoch + 1)]
    assert checkpoint.load([*keys, "all"]) == [*states, None, state(epoch)]


def has_written(checkpoint):
    """No base is being written."""
    writing = checkpoint._remote._writing
    return writing is None or writing.done()
