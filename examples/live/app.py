"""A page with a live chart: every browser tab has its own running copy of `monitor`.

A tab sends samples over a websocket: of a simulated sensor, or of the speed of its pointer. Its
stream, in a worker process, keeps the usual values of that tab in local variables, and answers each
sample with its distance from them. The page draws the answers as they arrive.

    pip install fastapi 'uvicorn[standard]' velo-stream
    uvicorn --app-dir examples/live app:app

Open http://127.0.0.1:8000 in several tabs. http://127.0.0.1:8000/status counts them.
"""

import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse

from velo import stream_fn
from velo.errors import WorkerDied

Sample = dict[str, float]
Answer = dict[str, Any]

PAGE = Path(__file__).with_name("index.html")
SERVICE_RESTART = 1012  # the close code of a websocket whose client may reconnect

MEMORY = 40  # samples in the moving mean, approximately
ENOUGH = 20  # samples that make a usual value
UNUSUAL = 4.0  # deviations from the mean that make a sample unusual

app = FastAPI()


@stream_fn(mode="process", buffer=64)
async def monitor(samples: AsyncIterator[Sample]) -> AsyncIterator[Answer]:
    """Answer each sample with the mean and the spread before it, and its distance from them."""
    count = found = 0
    mean = variance = 0.0
    async for sample in samples:
        value = float(sample["value"])
        if count == 0:
            mean = value
        count += 1
        step = value - mean
        spread = math.sqrt(variance)
        score = abs(step) / max(spread, 1e-9)
        unusual = count > ENOUGH and score > UNUSUAL
        found += unusual
        yield {
            "at": sample["at"],
            "value": value,
            "mean": round(mean, 4),
            "spread": round(spread, 4),
            "score": round(score, 2) if count > ENOUGH else None,
            "unusual": unusual,
            "count": count,
            "found": found,
            "worker": os.getpid(),
        }
        # A moving mean and variance. Unusual samples weigh less, so they become usual slowly.
        weight = max(1 / count, 1 / MEMORY) * (0.2 if unusual else 1)
        mean += weight * step
        variance = (1 - weight) * (variance + weight * step * step)


@app.get("/")
async def page() -> FileResponse:
    """Show the page."""
    return FileResponse(PAGE)


@app.websocket("/samples")
async def samples(socket: WebSocket) -> None:
    """Serve one tab as long as it is open."""
    await socket.accept()
    try:
        async with monitor.open() as stream:
            await socket.send_json({"stream": stream.name, "range": UNUSUAL})
            async for answer in stream.feed(received(socket)):
                await socket.send_json(answer)
    except WorkerDied:
        await socket.close(SERVICE_RESTART)  # its state is lost: the tab starts again
    except WebSocketDisconnect:
        return  # the tab closed before its answer


async def received(socket: WebSocket) -> AsyncIterator[Sample]:
    """Yield the messages of a tab, until it closes."""
    try:
        while True:
            yield await socket.receive_json()
    except WebSocketDisconnect:
        return


@app.get("/status")
async def status() -> dict[str, int]:
    """Count tabs and samples."""
    metrics = monitor.metrics
    return {"open": metrics.open, "opened": metrics.opened, "samples": metrics.events}
