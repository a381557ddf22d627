"""One stream per websocket: every device that connects has its own running copy of `monitor`.

A device sends readings (`{"value": 21.5}`), and each answer says whether the reading is unusual for
it. The statistics are local variables of a stream in a worker process, so a busy device does not
delay the others, and the server's event loop only forwards messages.

    pip install fastapi 'uvicorn[standard]' velo-stream
    uvicorn --app-dir examples websocket:app

Connect with any websocket client to ws://127.0.0.1:8000/readings, and open
http://127.0.0.1:8000/status.
"""

import math
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from velo import stream_fn

Reading = dict[str, Any]

app = FastAPI()


@stream_fn(mode="process", buffer=64)
async def monitor(readings: AsyncIterator[Reading]) -> AsyncIterator[Reading]:
    """Compare each reading with the usual readings of this device."""
    count, mean, squares = 0, 0.0, 0.0
    async for reading in readings:
        value = float(reading["value"])
        spread = math.sqrt(squares / count) if count > 1 else 0.0
        unusual = count >= 10 and abs(value - mean) > 4 * max(spread, 0.01)
        if not unusual:  # Welford's method
            count += 1
            step = value - mean
            mean += step / count
            squares += step * (value - mean)
        yield {"value": value, "mean": round(mean, 3), "unusual": unusual}


@app.websocket("/readings")
async def readings(socket: WebSocket) -> None:
    """Serve one device as long as it is connected."""
    await socket.accept()
    with suppress(WebSocketDisconnect):  # the device may disconnect before its answer
        async with monitor.open() as stream:
            async for answer in stream.feed(received(socket)):
                await socket.send_json(answer)


async def received(socket: WebSocket) -> AsyncIterator[Reading]:
    """Yield the messages of a device, until it disconnects."""
    try:
        while True:
            yield await socket.receive_json()
    except WebSocketDisconnect:
        return


@app.get("/status")
async def status() -> dict[str, int]:
    """Count devices and readings."""
    metrics = monitor.metrics
    return {"open": metrics.open, "opened": metrics.opened, "readings": metrics.events}
