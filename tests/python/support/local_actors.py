"""Objects of this process in place of actors of Ray."""

import asyncio
from types import SimpleNamespace

__all__ = ["Local"]


class Local:
    """An object in this process in place of an actor."""

    def __init__(self, inner, **replaced):
        self._inner, self._replaced = inner, replaced

    def __getattr__(self, name):
        call = self._replaced.get(name) or getattr(self._inner, name)
        return SimpleNamespace(
            remote=lambda *args, **more: asyncio.ensure_future(call(*args, **more))
        )
