"""The Redis server of `connect` and `alternatives`: one that is named, or one of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping

__all__ = ["SETTING", "NoRedis", "server"]

SETTING = "VELO_BENCH_REDIS"
START = 10.0  # seconds until one of our own answers


class NoRedis(Exception):
    """There is no Redis server; the message says how to have one."""


@contextlib.contextmanager
def server(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Give the address of a server, `HOST:PORT`.

    Args:
        environment: The variables of one that this starts and stops. None: those of this process,
            and a server that `SETTING` names goes before.

    Raises:
        NoRedis: There is none.

    """
    if environment is None and (named := os.environ.get(SETTING)):
        yield named
        return
    if (program := shutil.which("redis-server")) is None:
        raise NoRedis("there is no `redis-server`: install the package `redis-server`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="velo-bench-redis-") as folder:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoRedis("`redis-server` does not start") from None
            time.sleep(0.01)
