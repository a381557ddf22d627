"""Which stream the running code belongs to, wherever its function runs."""

from __future__ import annotations

import contextvars

__all__ = ["stream_name"]

stream_name: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "velo.stream_name", default=None
)
