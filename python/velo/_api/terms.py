"""How a driver runs, and what it has done: the settings of `into`, and its figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from velo._api.lanes import check
from velo.connect.urls import is_url

if TYPE_CHECKING:
    from velo._function.spec import FunctionSpec
    from velo.connect.model import Sink

__all__ = ["Checkpointing", "Figures", "OnError", "Terms", "no_state"]

OnError = Literal["raise", "drop"] | Callable[[Any, Exception], None]


def _check_interval(name: str, seconds: Any) -> None:
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"`{name}` must be a number of seconds above 0, not {seconds!r}")


@dataclass
class Terms:
    """How a driver deals with what fails, and when it commits; see `Connected.into`."""

    max_pending: int = 10_000
    on_error: OnError = "raise"
    finished_keys: str = "ignore"
    retries: int = 0
    dead_letter: Sink | None = None
    commit_every: float = 1.0
    drain: float = 30.0
    # For records that reach no function; None: as `on_error`.
    on_bad: OnError | None = None

    def check(self) -> None:
        """Raise for a setting out of its range."""
        check(self.max_pending, self.on_error, self.finished_keys)
        if self.on_bad not in (None, "raise", "drop") and not callable(self.on_bad):
            raise ValueError(f"`on_bad` must be `raise`, `drop` or a callable, not {self.on_bad!r}")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(f"`retries` must be an integer of at least 0, not {self.retries!r}")
        _check_interval("commit_every", self.commit_every)
        if not isinstance(self.drain, int | float) or not self.drain >= 0:
            raise ValueError(
                f"`drain` must be a number of seconds of at least 0, not {self.drain!r}"
            )


@dataclass(frozen=True)
class Checkpointing:
    """Where and how a run keeps a checkpoint; see `Connected.into`."""

    path: str | os.PathLike[str] | None = None
    every: float = 1.0
    keys: Literal["end", "unload"] = "end"
    ttl: float | None = None
    trusted: bool = False

    @property
    def is_remote(self) -> bool:
        """Whether it is in a store that other machines reach too."""
        return isinstance(self.path, str) and is_url(self.path)

    def check(self, spec: FunctionSpec) -> None:
        """Raise for a setting out of its range, and for a function whose state cannot be kept."""
        if self.keys not in ("end", "unload"):
            raise ValueError(f"`keys` must be `end` or `unload`, not {self.keys!r}")
        if self.ttl is not None and not (isinstance(self.ttl, int | float) and self.ttl > 0):
            raise ValueError(
                f"`ttl` must be a number of seconds above 0, or None, not {self.ttl!r}"
            )
        _check_interval("checkpoint_every", self.every)
        if self.path is None:
            for name, value in (("keys", self.keys != "end"), ("ttl", self.ttl is not None)):
                if value:
                    raise ValueError(
                        f"`{name}` is a setting of a checkpoint: give `checkpoint=` too"
                    )
        elif not spec.has_state:
            raise no_state(spec)


def no_state(spec: FunctionSpec) -> ValueError:
    """Make the error of a function whose state no checkpoint can keep."""
    return ValueError(
        f"`{spec.name}` has no `state`, so that a checkpoint has nothing to keep of it: "
        "take a second parameter `state`, a dict, and keep in it what the function has to "
        "know after a restart"
    )


@dataclass
class Figures:
    """What a driver has done so far.

    Attributes:
        read: The records that were read, with those that cannot be decoded, and without those that
            an earlier run has handled.
        results: The results.
        dead_letters: The records that went to the dead letters.
        bad: The records that could not be decoded or had no key, whatever became of them.
        dropped: Those that failed and were dropped, as `on_error` asks.
        retried: How often a record was tried again.
        commits: How often positions were committed.
        committed: The last committed position of each partition.
        epoch: The number of the last tick of the checkpoint; 0 without one.
        tick_seconds: How long that tick took, from the beginning of its cut to its commit.
        saved: How often the state of a key was stored.

    """

    read: int = 0
    results: int = 0
    dead_letters: int = 0
    bad: int = 0
    dropped: int = 0
    retried: int = 0
    commits: int = 0
    committed: dict[Hashable, Any] = field(default_factory=dict)
    epoch: int = 0
    tick_seconds: float = 0.0
    saved: int = 0
