"""Files that are packed: what Python does not have itself."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["zstd_module"]


def zstd_module() -> Any:
    """Return the module that packs and unpacks `.zst`; None where none is installed."""
    for name in ("compression.zstd", "backports.zstd"):  # the first one from Python 3.14 on
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
