"""`fn.keyed(...)` of a plain iterable: an async iterator, and `into`."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from velo import _core
from velo._api.lanes import keyed

if TYPE_CHECKING:
    from velo._api.terms import Figures
    from velo._function.spec import FunctionSpec
    from velo.connect.model import Sink

__all__ = ["KeyedResults", "keyed_results"]

T = TypeVar("T")


class KeyedResults(_core.KeyedResults[T]):
    """Results with their keys: `async for key, result in fn.keyed(...)`, or `.into(sink)`."""

    _made_of: tuple[Any, ...]

    async def into(self, sink: Sink, **settings: Any) -> Figures:
        """Write all results to a sink; see `Connected.into`.

        Nothing is committed. With a checkpoint, a collection is read again from its start, and the
        events that were handled are left out; an iterator and an async iterable go on with whatever
        they give next.
        """
        from velo._api.connected import Connected
        from velo._api.plain_source import plain_source
        from velo._api.terms import Terms

        spec, events, key, *terms = self._made_of
        connected: Connected[Any] = Connected(
            spec, plain_source(events), key, Terms(*terms), with_keys=True
        )
        return await connected.into(sink, **settings)


def keyed_results(
    spec: FunctionSpec,
    events: Iterable[Any] | AsyncIterable[Any],
    key: Any,
    max_pending: int,
    on_error: str | Callable[[Any, Exception], None],
    finished_keys: str,
) -> KeyedResults[Any]:
    """See `StreamFn.keyed`."""
    made_of = (spec, events, key, max_pending, on_error, finished_keys)
    results: KeyedResults[Any] = KeyedResults(*keyed(*made_of))
    results._made_of = made_of
    return results
