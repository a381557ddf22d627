"""The name of the stream in log records.

Records that a function logs in a worker reach the `logging` of the client process, with two more
attributes: `record.stream`, the name of the stream, and `record.worker`, the worker's process id.
`StreamNames` adds them to all other records, so that a format can use them:

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
    """Lets every record pass, and adds `stream` and `worker` if they are missing.

    `stream` is the name of the stream for a record of an inline function, and None for a record
    from outside of all streams; `worker` is the id of this process for both.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes that are missing."""
        if not hasattr(record, "stream"):
            record.stream = stream_name.get()
        if not hasattr(record, "worker"):
            record.worker = os.getpid()
        return True
