"""The result of one check of `velo doctor`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

__all__ = ["FAIL", "OK", "WARN", "Check", "read"]

OK = "ok"
WARN = "warn"
FAIL = "fail"


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: The name of the check.
        verdict: `OK`; `WARN`, if velo works with less than it could have; `FAIL`, if a part of
            velo will not work.
        found: The finding, with its figures.
        advice: The change to make; empty if none is needed.

    """

    name: str
    verdict: str
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.verdict != OK and not self.advice:
            raise ValueError(f"`{self.name}` finds a fault and does not say what to change")

    def as_dict(self) -> dict[str, str]:
        """Return the result for JSON."""
        return dataclasses.asdict(self)


def read(path: str | Path) -> str | None:
    """Return the content of a small file, or None if it does not exist or cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def bytes_of(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return (
                f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
            )
        count /= 1024
    return f"{count:.0f} TiB"
