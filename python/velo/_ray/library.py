"""Ray, which is imported where the first stream in ray mode runs."""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def load() -> Any:
    """Return the package `ray`.

    Raises:
        ImportError: When it is not installed; the message says how to get it.

    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "`mode=\"ray\"` needs a package: pip install 'velo-stream[ray]'"
        ) from error
    return ray
