"""A member of a group, which is killed, frozen and started again while others come and go.

    python group_member.py MODE SOURCE SINK CHECKPOINT

It runs until a SIGTERM.
"""

import asyncio
import logging
import signal
import sys

from sequences import sequence
from velo import connect
from velo.connect.urls import endpoint_of

# Seconds; short, so that many ticks are there to be hit.
EVERY = 0.1
# Logged once a SIGTERM stops the run; before that, it would end the program.
BEGINS = "a SIGTERM stops this member"


async def main(mode, source, sink, checkpoint):
    """Run until it is told to stop."""
    fn = sequence.options(mode=mode, workers=2 if mode == "process" else None)
    run = fn.keyed(
        endpoint_of(source),
        key=connect.record_key,
        max_pending=48,
        finished_keys="restart",
        on_error="drop",
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, run.stop)
    logging.info(BEGINS)
    await run.into(endpoint_of(sink), checkpoint=checkpoint, checkpoint_every=EVERY)


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(main(*sys.argv[1:]))
