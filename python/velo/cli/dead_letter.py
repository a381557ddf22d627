"""`velo dead-letter`: shows the records that a run has put aside, and feeds them again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import click

from velo.cli.connected.job import Refused
from velo.cli.connected.options import check_apart, endpoint
from velo.cli.errors import Failure
from velo.cli.text import echo, inline
from velo.connect.errors import ConnectError
from velo.connect.model import Bad, To, record_of
from velo.connect.urls import is_url

__all__ = ["dead_letter"]

_MANY = 500


@click.group(short_help="Look at records that failed, and feed them again.")
def dead_letter() -> None:
    """Work with the dead letters that `velo run --dead-letter` has written."""


@dead_letter.command("list")
@click.argument("place", metavar="FILE|URL")
def show(place: str) -> None:
    """Count dead letters by function and error."""
    counts: Counter[str] = Counter()

    async def main() -> None:
        async for letter in _letters(place):
            counts[f"{letter.get('function')}: {letter.get('error')}"] += 1

    asyncio.run(_as_refused(main()))
    for what, count in counts.most_common():
        echo(f"{count:>8,}  {inline(what)}")
    echo(f"{counts.total():>8,}  in all")


@dead_letter.command()
@click.argument("place", metavar="FILE|URL")
@click.option("-o", "--output", required=True, metavar="FILE|URL", help="Where the events go.")
@click.option("--function", metavar="NAME", help="Only those of this function.")
@click.option("--error", metavar="TEXT", help="Only those whose error has this in it.")
def replay(place: str, output: str, function: str | None, error: str | None) -> None:
    """Write the events of dead letters to a file or a URL, as they came.

    \b
      velo dead-letter replay bad.ndjson -o kafka://broker:9092/payments
      velo dead-letter replay bad.ndjson --error KeyError -o again.ndjson

    A record that could not be decoded is written as its bytes. Letters without an event, such as
    those of results, are left out. The dead letters are kept.
    """  # noqa: D301
    check_apart([place], output, None)
    written, without = asyncio.run(_as_refused(_replay(place, output, function, error)))
    left_out = f"; {without:,} letters have no event" if without else ""
    echo(f"{written:,} events written to {inline(output)}{left_out}")


async def _replay(
    place: str, output: str, function: str | None, error: str | None
) -> tuple[int, int]:
    sink = _file_or_url(output, "--output", "written", encode="bytes")
    written = without = 0
    batch: list[tuple[Any, Any]] = []
    try:
        async for letter in _letters(place):
            if function is not None and letter.get("function") != function:
                continue
            if error is not None and error not in str(letter.get("error")):
                continue
            if "value" not in letter:
                without += 1
                continue
            batch.append((letter.get("key"), _event(letter)))
            written += 1
            if len(batch) == _MANY:
                await sink.write(batch)
                batch = []
        await sink.write(batch)
        await sink.flush()
    finally:
        await sink.close()
    return written, without


async def _letters(place: str) -> AsyncIterator[dict[str, Any]]:
    settings = {"until": "end"} if is_url(place) and not place.startswith("file:") else {}
    source = _file_or_url(place, "FILE|URL", "read", **settings)
    try:
        async with contextlib.aclosing(aiter(source)) as batches:
            async for batch in batches:
                for item in batch if isinstance(batch, list | tuple) else ():
                    if isinstance(item, Bad) or not isinstance(item.value, dict):
                        where = record_of(item).position
                        raise Failure(f"{inline(place)}: no dead letter at position {where}")
                    yield item.value
    finally:
        await source.close()


def _file_or_url(place: str, option: str, role: str, **settings: str) -> Any:
    if is_url(place):
        return endpoint(place, option, role, **settings)
    from velo.connect import file

    return file(place, **settings)  # type: ignore[arg-type]


def _event(letter: dict[str, Any]) -> To:
    """Return the original bytes of a letter's event, or the event as JSON if there are none."""
    import orjson

    value = letter.get("value")
    undecoded = letter.get("undecoded")
    if isinstance(value, dict) and set(value) == {"base64"}:
        data = base64.b64decode(value["base64"])
    elif undecoded and isinstance(value, str):
        data = value.encode()
    else:
        data = orjson.dumps(value)
    key = letter.get("record_key")
    if isinstance(key, dict) and set(key) == {"base64"}:
        key = base64.b64decode(key["base64"])
    headers = tuple(
        (name, base64.b64decode(text["base64"]) if isinstance(text, dict) else text.encode())
        for name, text in letter.get("headers") or ()
    )
    return To(data, None, key, headers)


async def _as_refused(work: Any) -> Any:
    try:
        return await work
    except ConnectError as error:
        raise Refused(error) from error
