"""Stateful stream functions: one async generator, one running copy of it per stream.

```python
from velo import stream_fn


@stream_fn
async def running_mean(events):
    total = count = 0
    async for value in events:
        total, count = total + value, count + 1
        yield total / count


print(running_mean.run_sync([1, 2, 3]))  # [1.0, 1.5, 2.0]
```

PYTEST_DONT_REWRITE: because of the plugin for `velo.testing`, pytest would rewrite this package,
and warn if it was imported before.
"""

# First, because it says why velo cannot be imported, if it cannot.
from velo._load import __version__

# isort: split
from velo._api.function import StreamFn, stream_fn
from velo._config import StreamConfig
from velo._types import TYPE_CHECKING

if TYPE_CHECKING:
    from velo._api.live_keys import Keys
    from velo._api.stream import Stream
    from velo._diagnostics.metrics import KeysMetrics, StreamMetrics

__all__ = [
    "Keys",
    "KeysMetrics",
    "Stream",
    "StreamConfig",
    "StreamFn",
    "StreamMetrics",
    "__version__",
    "stream_fn",
]


def __getattr__(name: str) -> object:
    """Import names that need asyncio or `typing` when they are used: they take the longest."""
    if name == "Stream":
        from velo._api.stream import Stream

        return Stream
    if name == "Keys":
        from velo._api.live_keys import Keys

        return Keys
    if name in ("KeysMetrics", "StreamMetrics"):
        from velo._diagnostics import metrics

        return getattr(metrics, name)
    raise AttributeError(f"module `velo` has no attribute `{name}`")
