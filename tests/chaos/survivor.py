"""A program with a checkpoint, which is killed and started again until its source is at the end.

    python survivor.py MODE SOURCE SINK LETTERS CHECKPOINT KEYS RECOVER

It prints a line when it begins. Its exit code is STOPPED after a SIGTERM.
"""

import asyncio
import signal
import sys

from sequences import HOW, sequence
from velo._checkpoint import remote
from velo.connect.urls import endpoint_of

# Seconds; short, so that many ticks are there to be hit.
EVERY = 0.05
# With `keys="unload"`, so many of the keys stay in memory.
IN_MEMORY = 4
STOPPED = 3


async def main(mode, source, sink, letters, checkpoint, keys, recover):
    """Run until the source ends, or until it is told to stop."""
    remote._LEAST = 1000  # of a checkpoint in an object store: bases are written all the time
    fn = sequence.options(
        mode=mode,
        workers=2 if mode == "process" else None,
        recover=recover,
        max_concurrent=IN_MEMORY if keys == "unload" else None,
    )
    run = fn.keyed(endpoint_of(source), **HOW)
    sink, letters = endpoint_of(sink), endpoint_of(letters)
    code = 0

    def stop():
        nonlocal code
        code = STOPPED
        run.stop()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    print("begins", flush=True)
    await run.into(
        sink, dead_letter=letters, checkpoint=checkpoint, checkpoint_every=EVERY, keys=keys
    )
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
