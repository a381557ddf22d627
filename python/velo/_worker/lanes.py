"""Answers of a worker to `velo status`, `velo top` and `velo inspect`, about its lanes and keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from velo import _core
from velo._worker import introspection
from velo._worker.client import Client
from velo._worker.introspection import StreamInfo, is_named, name_of, where
from velo._worker.last_errors import error_of

__all__ = ["describe_all", "inspect", "inspect_keys"]

# How many lanes one answer describes.
_MOST_SHOWN = 1000


def describe_all(clients: Iterable[Client], longest: int) -> str:
    """Return the figures of all lanes, as JSON, or of as many as fit.

    Each is `[link, slot, live, opened, handled, slowest]`; the slowest keys are `[text, seconds,
    whether it awaits something]`.
    """
    parts: list[str] = []
    for client in clients:
        for slot in client.lanes:
            part = json.dumps(_figures(client, slot))
            longest -= len(part) + 2
            if longest < 0 or len(parts) == _MOST_SHOWN:
                break
            parts.append(part)
    return f"[{', '.join(parts)}]"


def _figures(client: Client, slot: int) -> tuple[Any, ...]:
    return (client.number, slot, *client.lanes[slot].figures())


def inspect(client: Client, stream: StreamInfo) -> dict[str, Any]:
    """Describe a stream that may be a lane."""
    if stream.slot not in client.lanes:
        return introspection.inspect(stream)
    return {
        **introspection.describe(stream),
        "state": "a lane of keys",
        "error": error_of(stream.task.get_name()),
        "figures": _figures(client, stream.slot),
    }


def inspect_keys(
    clients: Iterable[Client], which: str, key: str | None
) -> Iterator[dict[str, Any]]:
    """Describe keys of lanes: where their functions stand, and with what.

    Args:
        clients: The clients of the worker.
        which: A function or a lane, with a `key`; without, a key of any lane.
        key: The text of the key.

    """
    for client in clients:
        for slot, lane in list(client.lanes.items()):
            name = client.tasks[slot].get_name()
            function = name_of(client.functions.get(client.opened[slot].function))
            if key is None:
                yield from _inspect(lane, which, name, function)
            elif which == name or is_named(function, which):
                yield from _inspect(lane, key, name, function)


def _inspect(
    lane: _core.LaneRunner, key: str, name: str, function: str
) -> Iterator[dict[str, Any]]:
    for known in lane.find(key):
        stands = where(known["generator"])
        if known["awaits_event"] and stands["state"] == "waiting":
            stands["state"] = "waiting for an event"
        yield {
            "name": f"{function.rpartition(':')[2]}[{known['key']}]",
            "key": known["key"],
            "lane": name,
            "function": function,
            "error": error_of(name) if known["pinned"] else None,
            "events": known["taken"] + known["waiting"],
            "queued": known["waiting"] + known["at_work"],
            **stands,
        }
