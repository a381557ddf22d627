"""One service for a hundred thousand users: a running copy of the function for each of them.

Payments arrive as requests, each is answered from what the function knows of its user, and a user
who listens on a websocket hears of unusual ones. A user costs the memory of the local variables.

    pip install fastapi 'uvicorn[standard]' velo-stream
    uvicorn --app-dir examples users:app

    curl -X POST http://127.0.0.1:8000/users/ada/payments/12.5

A user ends after half an hour without a payment.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from velo import Keys, stream_fn

Report = dict[str, Any]


@stream_fn(mode="process", timeout=1800)
async def spending(payments: AsyncIterator[float]) -> AsyncIterator[Report]:
    """Report what a user has paid in all, and whether this payment is far above the others."""
    total = count = 0.0
    async for amount in payments:
        unusual = count >= 3 and amount > 5 * total / count
        total, count = total + amount, count + 1
        yield {"total": total, "unusual": unusual}


class Users:
    """The users, and the websockets of those who listen."""

    def __init__(self, keys: Keys[float, Report]) -> None:
        self.keys = keys
        self.inboxes: dict[str, asyncio.Queue[Report]] = {}

    async def deliver(self) -> None:
        """Hand what comes from `send` to the sockets, without waiting for a slow one."""
        async for user, report in self.keys:
            if (inbox := self.inboxes.get(user)) is not None and not inbox.full():
                inbox.put_nowait(report)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep the users for as long as the server runs."""
    async with spending.keys(on_error="drop") as keys, asyncio.TaskGroup() as tasks:
        app.state.users = users = Users(keys)
        tasks.create_task(users.deliver())
        yield
        await keys.end_all()  # `deliver` ends after the last reports


app = FastAPI(lifespan=lifespan)


@app.post("/users/{user}/payments/{amount}")
async def pay(user: str, amount: float) -> Report:
    """Answer a payment."""
    users: Users = app.state.users
    [report] = await users.keys.request(user, amount)
    return report


@app.websocket("/users/{user}")
async def listen(socket: WebSocket, user: str) -> None:
    """Take payments from a websocket, and send reports as they come."""
    await socket.accept()
    users, inbox = app.state.users, asyncio.Queue[Report](100)
    users.inboxes[user] = inbox

    async def receive() -> None:
        with suppress(WebSocketDisconnect):
            while True:
                await users.keys.send(user, float(await socket.receive_text()))

    async def answer() -> None:
        while True:
            await socket.send_json(await inbox.get())

    answering = asyncio.create_task(answer())
    try:
        await receive()
    finally:
        answering.cancel()
        users.inboxes.pop(user, None)


@app.delete("/users/{user}")
async def leave(user: str) -> None:
    """Forget a user."""
    await app.state.users.keys.end(user)


@app.get("/status")
async def status() -> dict[str, int]:
    """Count users and payments."""
    metrics = app.state.users.keys.metrics
    return {"users": metrics.open, "payments": metrics.events, "queued": metrics.queued}
