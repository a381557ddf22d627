"""A fraud score per user: the stream of each user keeps the usual behaviour of that user.

    python examples/fraud.py

Generates 20,000 card payments of 200 users, three of whom lose their card during the run. Sends
them through worker processes, and prints the payments with the highest scores, and their users.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from velo import stream_fn

Payment = dict[str, Any]

STOLEN = ("user-17", "user-58", "user-141")


@stream_fn(mode="process")
async def fraud_score(payments: AsyncIterator[Payment]) -> AsyncIterator[Payment]:
    """Score each payment from 0 to 1 by its distance from the user's usual payments."""
    countries: Counter[str] = Counter()
    recent: deque[float] = deque(maxlen=5)  # times
    mean = 0.0

    async for payment in payments:
        known = countries.total()
        score = 0.0
        if known >= 5:
            score += 0.4 * (payment["country"] not in countries)
            score += 0.4 * min(max(payment["amount"] / mean - 2, 0) / 8, 1)
            score += 0.2 * (len(recent) == 5 and payment["at"] - recent[0] < 300)
        yield payment | {"score": round(score, 2)}

        recent.append(payment["at"])
        if score < 0.5:  # suspicious payments do not count as usual
            countries[payment["country"]] += 1
            mean += (payment["amount"] - mean) / (known + 1)


def payments(count: int = 20_000) -> Iterator[Payment]:
    """Generate payments: every user has a country and a usual amount."""
    dice = random.Random(20)
    homes = {f"user-{n}": dice.choice(["FR", "DE", "PT", "NO"]) for n in range(200)}
    usual = {user: dice.uniform(10, 80) for user in homes}
    for number in range(count):
        at = number * 30
        if number > count / 2 and dice.random() < 0.004:
            user, country, amount = dice.choice(STOLEN), "US", dice.uniform(400, 900)
        else:
            user = dice.choice(list(homes))
            country, amount = homes[user], usual[user] * dice.lognormvariate(0, 0.3)
        yield {"user": user, "at": at, "country": country, "amount": round(amount, 2)}


async def main(count: int = 20_000) -> None:
    """Score all payments, one stream per user, and print the suspicious ones."""
    suspicious = []
    async for user, payment in fraud_score.keyed(payments(count), key="user"):
        if payment["score"] >= 0.5:
            suspicious.append((payment["score"], user, payment))
    suspicious.sort(key=lambda found: (-found[0], found[2]["at"]))

    print("score  user      country   amount")
    for score, user, payment in suspicious[:8]:
        print(f" {score:.2f}  {user:<8}  {payment['country']:<7} {payment['amount']:>8.2f}")
    users = sorted({user for _, user, _ in suspicious})
    print(f"{len(suspicious)} of {count:,} payments are suspicious, by {', '.join(users)}")


if __name__ == "__main__":
    asyncio.run(main())
