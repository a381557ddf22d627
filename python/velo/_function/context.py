"""The stream that the running code belongs to, in both modes."""

from __future__ import annotations

import contextvars

__all__ = ["stream_name"]

stream_name: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "velo.stream_name", default=None
)
