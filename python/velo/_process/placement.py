"""Which worker a stream goes to."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

from velo import _core
from velo._process.links import Link

__all__ = ["below_share", "free", "least", "usable", "usable_cores"]


@functools.cache
def usable_cores() -> int:
    """How many cores this process may really use. Asked once: it takes the system a while."""
    return _core.usable_cores()


def usable(links: Iterable[Link], workers: int, avoid: Link | None = None) -> list[Link]:
    """Return the first so many workers that take streams, without one that a stream is to leave."""
    staying = [link for link in links if not link.leaving]
    if len(staying) > 1:
        staying.sort(key=lambda link: link.worker)
    found = staying[:workers]
    return found if avoid is None else [link for link in found if link is not avoid]


def free(links: Collection[Link], workers: int, avoid: Link | None = None) -> Link | None:
    """Choose a worker for which no other has to be asked for; None if there is none."""
    if len(links) == 1 and avoid is None:  # the same in short
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
    """Choose a worker that has fewer streams than it will have once all workers are there.

    `placing` streams are to be placed now.
    """
    found = usable(links, workers, avoid)
    one = least(found)
    if one is None or one.end.slow:
        return None
    streams = sum(link.end.streams for link in found) + placing
    return one if one.end.streams * workers < streams else None


def least(links: list[Link]) -> Link | None:
    """Return the link with the fewest streams, rather one where none holds its neighbours up."""
    if len(links) == 1:
        return links[0]
    return min(links, key=lambda link: (link.end.slow, link.end.streams), default=None)
