"""One cart per user, in any server process that handles the request.

The processes share one supervisor, and `open(key=user)` attaches to the session that has this
user's cart in its local variables: no database, no sticky sessions.

    pip install fastapi 'uvicorn[standard]' velo-stream
    velo supervisor start --detach
    VELO_SUPERVISOR=daemon uvicorn --app-dir examples --workers 4 cart:app

    curl -X POST http://127.0.0.1:8000/carts/ada/tea

A cart ends after half an hour without a request.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI

from velo import stream_fn

Cart = dict[str, int]

app = FastAPI()


@stream_fn(mode="process", timeout=1800)
async def cart(items: AsyncIterator[str | None]) -> AsyncIterator[Cart]:
    """Add each item, and answer with the whole cart; None adds nothing."""
    inside: Counter[str] = Counter()
    async for item in items:
        if item is not None:
            inside[item] += 1
        yield dict(inside)


async def ask(user: str, item: str | None) -> dict[str, Any]:
    """Attach to the cart of a user for one question."""
    async with cart.open(key=user) as stream:
        await stream.send(item)
        return {"cart": await stream.recv(), "served_by": os.getpid()}


@app.get("/carts/{user}")
async def look(user: str) -> dict[str, Any]:
    """Show a cart."""
    return await ask(user, None)


@app.post("/carts/{user}/{item}")
async def add(user: str, item: str) -> dict[str, Any]:
    """Add an item to a cart."""
    return await ask(user, item)


@app.delete("/carts/{user}")
async def check_out(user: str) -> dict[str, Any]:
    """Empty a cart: its stream ends."""
    async with cart.open(key=user) as stream:
        await stream.send(None)
        bought = await stream.recv()
        await stream.end()
    return {"bought": bought, "served_by": os.getpid()}
