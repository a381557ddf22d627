"""JSON out of a token stream: each object as soon as its last brace arrives.

A language model writes JSON a few characters at a time, with prose around it. The stream function
keeps the incomplete object in local variables, and yields it when it is complete.

    python examples/token_json.py

Prints each token as it arrives, and each object after the token that completed it.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from velo import stream_fn

ANSWER = (
    'Sure! Here are two: {"city": "Lyon", "why": "food {and} rivers"} and '
    '{"city": "Porto", "tags": {"coast": true, "quote": "say \\"olá\\""}}. Enjoy!'
)


@stream_fn
async def objects(tokens: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield every JSON object at the top of the text, however it was cut into tokens."""
    text, depth = "", 0
    in_string = escaped = False

    async for token in tokens:
        for letter in token:
            if depth == 0 and letter != "{":
                continue  # prose
            text += letter
            if escaped:
                escaped = False
            elif in_string:
                escaped = letter == "\\"
                in_string = letter != '"'
            elif letter == '"':
                in_string = True
            elif letter == "{":
                depth += 1
            elif letter == "}":
                depth -= 1
                if depth == 0:
                    yield json.loads(text)
                    text = ""


async def main() -> None:
    """Send tokens of a few characters, and print objects as they come."""
    tokens = [ANSWER[start : start + 5] for start in range(0, len(ANSWER), 5)]

    async def model() -> AsyncIterator[str]:
        for token in tokens:
            print(token, end="", flush=True)
            yield token
            await asyncio.sleep(0.01)

    async with objects.open() as stream:
        async for found in stream.feed(model()):
            print(f"\n  --> {found}")
    print()


if __name__ == "__main__":
    asyncio.run(main())
