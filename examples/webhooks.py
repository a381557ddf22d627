"""Webhook sessions: a checkout is one stream, and its idle timeout ends it.

Webhooks of several checkouts arrive mixed, each with the number of its checkout. Every checkout
gets a stream of its own. When no webhook comes for `timeout` seconds, the stream's input ends, and
the code after the function's loop yields the outcome.

    python examples/webhooks.py

Prints each checkout as it closes: paid, abandoned, or failed.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

from velo import stream_fn

Hook = dict[str, Any]

STEPS = ("cart.created", "address.added", "payment.started", "payment.done")


@stream_fn(timeout=0.3, max_concurrent=1000)
async def checkout(hooks: AsyncIterator[Hook]) -> AsyncIterator[Hook]:
    """Follow one checkout, and yield its outcome at its end."""
    seen: set[int] = set()
    steps: list[str] = []

    async for hook in hooks:
        if hook["id"] in seen:
            continue  # senders repeat webhooks that were not acknowledged in time
        seen.add(hook["id"])
        steps.append(hook["type"])
        if hook["type"] == "payment.done":
            yield {"outcome": "paid", "steps": len(steps)}
            return

    outcome = "failed" if "payment.failed" in steps else "abandoned"
    yield {"outcome": outcome, "steps": len(steps), "last": steps[-1]}


async def arriving(checkouts: int) -> AsyncIterator[Hook]:
    """Generate webhooks, four checkouts at a time. Some stop early, some webhooks come twice."""
    dice = random.Random(4)
    endings = [STEPS, STEPS, STEPS[:2], (*STEPS[:3], "payment.failed")]
    waiting = [(number, list(dice.choice(endings))) for number in range(checkouts)]
    under_way: list[tuple[int, list[str]]] = []
    for number_of_hook in itertools.count():
        while waiting and len(under_way) < 4:
            under_way.append(waiting.pop(0))
        if not under_way:
            return
        at = dice.randrange(len(under_way))
        number, steps = under_way[at]
        hook = {"id": number_of_hook, "checkout": number, "type": steps.pop(0)}
        for _ in range(dice.choice([1, 1, 1, 2])):
            yield hook
        if not steps:
            del under_way[at]
        await asyncio.sleep(0.01)


async def main(checkouts: int = 24) -> None:
    """Run one stream per checkout."""
    async for number, told in checkout.keyed(arriving(checkouts), key="checkout"):
        last = f", last seen at {told['last']}" if "last" in told else ""
        print(f"checkout {number:>2}: {told['outcome']:<9} after {told['steps']} steps{last}")


if __name__ == "__main__":
    asyncio.run(main())
