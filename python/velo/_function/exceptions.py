"""Exceptions that cross from a worker to its client."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

from velo.errors import RemoteError, StreamClosed

# Called with each exception that is packed, if it is set.
note: Callable[[BaseException], object] | None = None

_log = logging.getLogger("velo")

Packed = tuple[bytes | None, str, str, str, tuple[str, ...]]


def log_failure(error: BaseException) -> None:
    """Say what a function raised while nobody was attached to its stream who could get it."""
    if not isinstance(error, StreamClosed):  # it was cancelled: its event loop ends
        _log.error("a stream failed while nobody was attached to it", exc_info=error)


def pack(error: BaseException, longest: int) -> Packed:
    """Return what travels: the exception itself where it can, and in words in any case.

    Args:
        error: What the function raised.
        longest: How many bytes there may be of it. Words are cut to fit.

    """
    if note is not None:
        note(error)
    text = "".join(traceback.format_exception(error))
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    message = _message(error)
    notes = tuple(str(note) for note in getattr(error, "__notes__", ()))
    pickled = _dumps(error)
    # A character takes four bytes at most; the rest is for what is around the words.
    if len(pickled or b"") + 4 * (len(text) + len(message) + sum(map(len, notes))) > longest // 2:
        some = longest // 32
        text, message, notes = text[-some:], message[:some], ()
        if pickled is not None and len(pickled) > longest // 4:
            pickled = None
    return (pickled, kind[:200], message, text, notes)


def unpack(packed: Packed | None) -> BaseException:
    """Return the exception to raise at the caller, with the worker's traceback as a note."""
    if packed is None:
        return RemoteError("unknown", "the exception could not be described")
    pickled, kind, message, text, notes = packed
    error: BaseException | None = None
    if pickled is not None:
        with contextlib.suppress(Exception):  # its class cannot be made here: words will do
            error = pickle.loads(pickled)
    if error is None:
        error = RemoteError(kind, message, text)
        for note in notes:
            error.add_note(note)
    error.add_note(f"in the worker:\n{text.rstrip()}")
    return error


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failed:
        return f"<message unavailable: its __str__ raised {type(failed).__name__}>"


def _dumps(error: BaseException) -> bytes | None:
    """Pickle an exception, if it comes out as it went in. Trying is the only way to know."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            # Exceptions reduce to a call of their class with `args`, which fails for constructors
            # that want something else; for them, what `__new__` and `__dict__` hold is kept.
            if isinstance(value, BaseException) and _reduces_plainly(type(value)):
                return _rebuild, (type(value), value.args), value.__dict__ or None
            return super().reducer_override(value)

    for pickler in (cloudpickle.Pickler, Pickler):
        buffer = io.BytesIO()
        try:
            pickler(buffer, protocol=5).dump(error)
            again = pickle.loads(buffer.getvalue())
        except Exception:
            continue
        if type(again) is type(error) and _message(again) == _message(error):
            return buffer.getvalue()
    return None


def _reduces_plainly(kind: type) -> bool:
    methods = (getattr(kind, "__reduce__", None), getattr(kind, "__reduce_ex__", None))
    return methods == (BaseException.__reduce__, object.__reduce_ex__)


def _rebuild(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    return error
