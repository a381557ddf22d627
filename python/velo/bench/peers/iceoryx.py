"""iceoryx2: publish and subscribe in shared memory; both sides spin, which is its best."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pickle
from collections.abc import Iterator
from typing import Any

import iceoryx2 as iox

from velo.bench.peers import Work
from velo.bench.peers.stdlib import FORK

AHEAD = 1024

# Every subscriber of a service gets all samples, so each worker has services of its own.
_NUMBERS = itertools.count()


class _Services:
    """A service each way; objects by pickle, copied once into the sample that is sent."""

    def __init__(self, out: str, back: str) -> None:
        iox.set_log_level(iox.LogLevel.Error)
        self._node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        self._publisher = (
            self._service(out)
            .publisher_builder()
            .initial_max_slice_len(1 << 16)
            .allocation_strategy(iox.AllocationStrategy.PowerOfTwo)
            .create()
        )
        self._subscriber = self._service(back).subscriber_builder().create()

    def _service(self, name: str) -> Any:
        return (
            self._node.service_builder(iox.ServiceName.new(name))
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .subscriber_max_buffer_size(AHEAD)
            .enable_safe_overflow(False)
            .open_or_create()
        )

    def send(self, item: Any) -> None:
        body = pickle.dumps(item, protocol=5)
        sample = self._publisher.loan_slice_uninit(len(body))
        ctypes.memmove(sample.payload().data_ptr, body, len(body))
        sample.assume_init().send()

    def recv(self) -> Any:
        while (sample := self._subscriber.receive()) is None:
            pass
        body = sample.payload()
        item = pickle.loads(ctypes.string_at(body.data_ptr, body.len()))
        sample.delete()
        return item


def _serve(events: str, results: str, ready: Any, work: Work) -> None:
    services = _Services(results, events)
    ready.set()
    while (item := services.recv()) is not None:
        services.send(work(item))


@contextlib.contextmanager
def publish_subscribe(work: Work) -> Iterator[_Services]:
    """Use a service each way."""
    number = next(_NUMBERS)
    events, results = (f"velo-bench/{os.getpid()}/{number}/{way}" for way in ("events", "results"))
    ready = FORK.Event()
    process = FORK.Process(target=_serve, args=(events, results, ready, work), daemon=True)
    process.start()
    services = _Services(events, results)
    ready.wait()
    yield services
    services.send(None)
    process.join()
