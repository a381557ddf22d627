"""A client that the fault hits: runs a phase again and again, and says on its standard output
when the fault may come and what came out.

    python client.py PHASE SEED RUNS [SOCKET]
"""

import asyncio
import json
import random
import sys

from outcome import Outcome
from phases import PHASES, expected
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
        injected = loop.create_future()

        def began(injected=injected):
            say(began=True)
            loop.call_later(0.05, lambda: injected.done() or injected.set_result(None))
            return injected

        await phase.run(fn, streams, began)
        outcome = Outcome()
        for stream in streams:
            outcome.compare(stream.results, await expected(fn, stream))
        say(lost=outcome.lost, doubled=outcome.doubled, wrong=outcome.wrong)


if __name__ == "__main__":
    phase, seed, runs, *rest = sys.argv[1:]
    asyncio.run(main(PHASES[phase], int(seed), int(runs), rest[0] if rest else None))
