"""Spinning: a client that polls for a worker's result does not keep its event loop from others."""

import asyncio

import functions
from helpers import HANG


async def test_a_stream_that_is_worth_spinning_for_lets_other_tasks_have_their_turn():
    turns = 0

    async def sibling():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with functions.echo.options(mode="process").open() as stream:
        task = asyncio.create_task(sibling())
        async with asyncio.timeout(HANG):
            while turns < 100:
                await stream.send(1)
                assert await stream.recv() == 1
        task.cancel()
