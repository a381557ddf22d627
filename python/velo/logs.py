"""Telling in the logs which stream a record comes from.

What a function logs in a worker reaches the `logging` of the client process, with two more
attributes: `record.stream`, the name of the stream, and `record.worker`, the worker's process id.
`StreamNames` gives them to all other records as well, so that a format may use them:

```python
import logging

from velo.logs import StreamNames

handler = logging.StreamHandler()
handler.addFilter(StreamNames())
handler.setFormatter(logging.Formatter("%(levelname)s [%(stream)s] %(message)s"))
logging.getLogger().addHandler(handler)
```
"""

from __future__ import annotations

import logging
import os

from velo._function.context import stream_name

__all__ = ["StreamNames"]


class StreamNames(logging.Filter):
    """Lets every record pass, and sees to it that it has `stream` and `worker`.

    A record of an inline function gets the name of its stream, one from outside of all streams gets
    None; `worker` is the id of this process for both.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is missing."""
        if not hasattr(record, "stream"):
            record.stream = stream_name.get()
        if not hasattr(record, "worker"):
            record.worker = os.getpid()
        return True
