"""A program with a supervisor of its own, which those who look find."""

import contextlib
import select
import subprocess

from helpers import HANG, start_script, until_sync
from velo import _core

PROGRAM = """
    import asyncio, os, sys, time
    from velo import stream_fn
    from velo.errors import StreamClosed

    @stream_fn(mode="process", workers=1)
    async def counting(events):
        total = 0
        async for event in events:
            total += event
            yield total

    async def main():
        async with counting.open() as first, counting.open() as second:
            await first.send(5)
            print(await first.recv(), flush=True)
            for line in iter(sys.stdin.readline, ""):
                if line == "fork\\n":
                    if not os.fork():
                        # Said by the child: it has let go of the parent's supervisor by now.
                        print(os.getpid(), flush=True)
                        time.sleep(3600)
                if line == "wait\\n":
                    try:
                        await second.recv()
                    except StreamClosed as error:
                        print(error, flush=True)

    asyncio.run(main())
"""


class Program:
    """A program that runs two streams, and does what it reads."""

    def __init__(self, path):
        self.process = start_script(path, stdin=subprocess.PIPE)
        self.pid = self.process.pid
        assert self.hear() == "5"
        until_sync(lambda: self.socket() is not None)

    def hear(self):
        ready = select.select([self.process.stdout], [], [], HANG)[0]
        assert ready, "it says nothing"
        return self.process.stdout.readline().strip()

    def tell(self, order):
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()

    def socket(self):
        return next((path for pid, path in _core.programs() if pid == self.pid), None)

    def end(self):
        self.process.stdin.close()
        return self.process.wait(HANG)

    def close(self):
        """Let nothing of it outlive a test."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
