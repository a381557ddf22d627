"""A client that is struck itself: runs a phase again and again, and says on its standard output
when the strike may come and what came out.

    python client.py PHASE SEED RUNS [SOCKET]
"""

import asyncio
import json
import random
import sys

from phases import PHASES, expected
from tally import Tally
from work import account


def say(**what):
    """One line for whoever started this."""
    print(json.dumps(what), flush=True)


async def main(phase, seed, runs, socket):
    """Run the phase; each time, wait to be told to."""
    fn = account.options(supervisor=socket) if socket else account
    await fn.run([(0, b"warm")])  # a pool that runs already
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    for _ in range(runs):
        streams = phase.streams(rng)
        struck = loop.create_future()

        def began(struck=struck):
            say(began=True)
            loop.call_later(0.05, lambda: struck.done() or struck.set_result(None))
            return struck

        await phase.run(fn, streams, began)
        tally = Tally()
        for stream in streams:
            tally.compare(stream.results, await expected(fn, stream))
        say(lost=tally.lost, doubled=tally.doubled, wrong=tally.wrong)


if __name__ == "__main__":
    phase, seed, runs, *rest = sys.argv[1:]
    asyncio.run(main(PHASES[phase], int(seed), int(runs), rest[0] if rest else None))
