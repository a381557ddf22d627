"""The choice of the worker for a stream."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

from velo import _core
from velo._process.links import Link

__all__ = ["below_share", "free", "least", "usable", "usable_cores"]


@functools.cache
def usable_cores() -> int:
    """Return how many cores this process may use. Cached, because the system calls are slow."""
    return _core.usable_cores()


def usable(links: Iterable[Link], workers: int, avoid: Link | None = None) -> list[Link]:
    """Return the first `workers` links that take streams, except the one to avoid."""
    staying = [link for link in links if not link.leaving]
    if len(staying) > 1:
        staying.sort(key=lambda link: link.worker)
    found = staying[:workers]
    return found if avoid is None else [link for link in found if link is not avoid]


def free(links: Collection[Link], workers: int, avoid: Link | None = None) -> Link | None:
    """Choose a worker, if no new one needs to start; None otherwise."""
    if len(links) == 1 and avoid is None:  # the common case, in short
        (only,) = links
        return only if not only.leaving and (workers <= 1 or only.end.streams == 0) else None
    found = usable(links, workers, avoid)
    one = least(found)
    if one is not None and (len(found) >= workers or one.end.streams == 0):
        return one
    return None


def below_share(
    links: Iterable[Link], workers: int, avoid: Link | None, placing: int
) -> Link | None:
    """Choose a worker with fewer streams than its share once all workers have started.

    `placing` streams wait for a worker now.
    """
    found = usable(links, workers, avoid)
    one = least(found)
    if one is None or one.end.slow:
        return None
    streams = sum(link.end.streams for link in found) + placing
    return one if one.end.streams * workers < streams else None


def least(links: list[Link]) -> Link | None:
    """Return the link with the fewest streams; links without slow streams come first."""
    if len(links) == 1:
        return links[0]
    return min(links, key=lambda link: (link.end.slow, link.end.streams), default=None)
