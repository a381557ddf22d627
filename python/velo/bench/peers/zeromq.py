"""pyzmq: PUSH and PULL over a Unix socket."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Iterator
from typing import Any

import zmq as _zmq

from velo.bench.peers import Work
from velo.bench.peers.stdlib import FORK

zmq: Any = _zmq  # its type hints are incomplete


class _Sockets:
    """Sends objects by pickle 5, and large buffers inside them as message parts, without a copy."""

    def __init__(self, out: str, back: str, *, bind: bool) -> None:
        self._context = zmq.Context()
        self._out, self._back = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        for socket, address in ((self._out, out), (self._back, back)):
            (socket.bind if bind else socket.connect)(address)

    def send(self, item: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        body = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
        if buffers:
            self._out.send_multipart([body, *(buffer.raw() for buffer in buffers)], copy=False)
        else:
            self._out.send(body)

    def recv(self) -> Any:
        body = self._back.recv()
        if not self._back.getsockopt(zmq.RCVMORE):
            return pickle.loads(body)
        parts = self._back.recv_multipart(copy=False)
        return pickle.loads(body, buffers=[part.buffer for part in parts])

    def close(self) -> None:
        self._context.destroy(linger=0)


def _serve(events: str, results: str, work: Work) -> None:
    sockets = _Sockets(results, events, bind=False)
    while (item := sockets.recv()) is not None:
        sockets.send(work(item))
    sockets.close()


@contextlib.contextmanager
def push_pull(work: Work) -> Iterator[_Sockets]:
    """Use a socket each way."""
    with tempfile.TemporaryDirectory() as folder:
        addresses = f"ipc://{folder}/events", f"ipc://{folder}/results"
        process = FORK.Process(target=_serve, args=(*addresses, work), daemon=True)
        process.start()
        sockets = _Sockets(*addresses, bind=True)
        yield sockets
        sockets.send(None)
        process.join()
        sockets.close()
