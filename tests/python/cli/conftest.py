"""What tests of the command share: stream functions in a file, and running `velo` on them."""

import contextlib
import json
import subprocess
import sys
from collections import defaultdict

import pytest

from helpers import HANG, environment, write_script

FUNCTIONS = """
    import asyncio
    from velo import stream_fn

    @stream_fn
    async def echo(events):
        async for event in events:
            yield event

    @stream_fn
    async def sums(events):
        total = 0
        async for event in events:
            total += event["v"]
            yield total
        yield {"total": total}

    @stream_fn
    async def inverse(events):
        async for event in events:
            yield 1 / event["v"]

    @stream_fn
    async def first(events):
        async for event in events:
            yield event
            return

    @stream_fn
    async def odd(events):
        async for event in events:
            yield {"set": {event["v"]}, (1).__int__(): 2.5}
            yield object()

    async def undecorated(events):
        yield 1

    number = 1
"""


class Done:
    """A command that has ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def results(self):
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def by_key(self):
        keys = defaultdict(list)
        for line in self.results:
            keys[line["key"]].append(line["result"])
        return dict(keys)


class Velo:
    """Runs `python -m velo` in a folder that has `fns.py`."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []
        write_script(folder, FUNCTIONS, "fns.py")

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    @property
    def environment(self):
        return environment()

    def command(self, *args):
        return [sys.executable, "-m", "velo", *map(str, args)]

    def start(self, *args, **options):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            self.command(*args),
            cwd=self.folder,
            env=environment(),
            start_new_session=True,
            **{**pipes, **options},
        )
        self.started.append(process)
        return process

    def close(self):
        """Let nothing outlive a test that failed."""
        for process in self.started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None and not pipe.closed:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def __call__(self, *args, stdin=b""):
        process = self.start(*args)
        try:
            out, err = process.communicate(stdin, timeout=HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"`velo` hangs; it said {out!r} and {err!r}") from None
        return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
def velo(tmp_path):
    command = Velo(tmp_path)
    yield command
    command.close()
