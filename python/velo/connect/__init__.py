"""Sources and sinks: where streams come from and go to.

```python
from velo import connect

await spree.keyed(connect.kafka("localhost:9092", "payments", group="fraud"), key="card").into(
    connect.kafka("localhost:9092", "alerts")
)
```

Each connector is a file of its own, which needs the package that `pip install
'velo-stream[NAME]'` brings; it is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from velo.connect.model import (
    Assigned,
    Bad,
    Lost,
    Record,
    Revoked,
    Sink,
    Source,
    To,
    record_key,
    to,
)

if TYPE_CHECKING:
    from velo.connect._file import file as file
    from velo.connect._http import http as http
    from velo.connect._kafka import kafka as kafka
    from velo.connect._messages import messages as messages
    from velo.connect._mqtt import mqtt as mqtt
    from velo.connect._nats import nats as nats
    from velo.connect._objects import objects as objects
    from velo.connect._postgres import postgres as postgres
    from velo.connect._rabbitmq import rabbitmq as rabbitmq
    from velo.connect._redis import redis as redis
    from velo.connect._registry import schema_registry as schema_registry
    from velo.connect._sse import sse as sse
    from velo.connect._websocket import websocket as websocket
    from velo.connect.rows import csv as csv

__all__ = [
    "Assigned",
    "Bad",
    "Lost",
    "Record",
    "Revoked",
    "Sink",
    "Source",
    "To",
    "record_key",
    "to",
]

# The connectors: the function's name, and its file. A file with the name of its function would
# stand in the function's place once it is imported.
_CONNECTORS: dict[str, str] = {
    "file": "_file",
    "http": "_http",
    "kafka": "_kafka",
    "messages": "_messages",
    "mqtt": "_mqtt",
    "nats": "_nats",
    "objects": "_objects",
    "postgres": "_postgres",
    "rabbitmq": "_rabbitmq",
    "redis": "_redis",
    "sse": "_sse",
    "websocket": "_websocket",
}

# What is no connector, and is imported when it is used too.
_OTHERS = {"csv": "rows", "schema_registry": "_registry"}


def __getattr__(name: str) -> Any:
    """Import a connector when it is used."""
    if (file := (_CONNECTORS | _OTHERS).get(name)) is None:
        raise AttributeError(f"module `velo.connect` has no attribute `{name}`")
    return getattr(importlib.import_module(f"velo.connect.{file}"), name)


def __dir__() -> list[str]:
    """Name the connectors as well."""
    return sorted({*globals(), *_CONNECTORS, *_OTHERS})
