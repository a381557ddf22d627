"""Exceptions on their way from a worker to its client."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from velo.errors import RemoteError, StreamClosed

# Called with each exception that is packed, if set.
note: Callable[[BaseException], object] | None = None

_log = logging.getLogger("velo")

Packed = tuple[bytes | None, str, str, str, tuple[str, ...]]


def log_failure(error: BaseException) -> None:
    """Log the exception of a session that had no attachment to raise it in."""
    if not isinstance(error, StreamClosed):  # its event loop ends, which has cancelled it
        _log.error("a stream failed while nobody was attached to it", exc_info=error)


def hint_at_copy(error: BaseException) -> None:
    """Note on the error of a write to read-only memory how to get an array to write to."""
    if type(error) in (ValueError, TypeError) and "read-only" in _message(error):
        error.add_note(
            "large arrays that arrive from another process are read-only views of shared memory: "
            "write to a copy, `array = array.copy()`, or receive with `recv(copy=True)`"
        )


def _hint_at_input(error: BaseException) -> None:
    """Note on the error of a function that wants to read the terminal that a worker has none."""
    reads = type(error) is EOFError and "reading a line" in _message(error)
    if reads or type(error).__name__ == "BdbQuit":
        error.add_note(
            "a worker has no standard input: to debug, or to ask its user, run the function with "
            '`fn.options(mode="inline")`'
        )


def pack(error: BaseException, longest: int, *, again: bool = False) -> Packed:
    """Return an exception as it travels: pickled if possible, and as text in any case.

    Args:
        error: The exception of the function.
        longest: The maximum size in bytes. Texts are cut to fit.
        again: It has come here from a worker, whose traceback is in its notes.

    """
    if note is not None:
        note(error)
    hint_at_copy(error)
    _hint_at_input(error)
    text = "" if again else "".join(traceback.format_exception(error))
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    message = _message(error)
    notes = tuple(str(note) for note in getattr(error, "__notes__", ()))
    pickled = _dumps(error)
    # A character takes four bytes at most. The other half is for the encoding around the texts.
    if len(pickled or b"") + 4 * (len(text) + len(message) + sum(map(len, notes))) > longest // 2:
        some = longest // 32
        text, message, notes = text[-some:], message[:some], ()
        if pickled is not None and len(pickled) > longest // 4:
            pickled = None
    return (pickled, kind[:200], message, text, notes)


def unpack(packed: Packed | None) -> BaseException:
    """Return the exception to raise in the caller, with the worker's traceback as a note."""
    if packed is None:
        return RemoteError("unknown", "the exception could not be described")
    pickled, kind, message, text, notes = packed
    error: BaseException | None = None
    if pickled is not None:
        with contextlib.suppress(
            Exception
        ):  # its class cannot be imported or created here: the text remains
            error = pickle.loads(pickled)
    if error is None:
        error = RemoteError(kind, message, text)
        for note in notes:
            error.add_note(note)
    if text:
        error.add_note(f"in the worker:\n{text.rstrip()}")
    return error


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failed:
        return f"<message unavailable: its __str__ raised {type(failed).__name__}>"


def _dumps(error: BaseException) -> bytes | None:
    """Pickle an exception, if unpickling gives the same one, which only an attempt can show."""
    for pickler in _picklers():
        buffer = io.BytesIO()
        try:
            pickler(buffer, protocol=5).dump(error)
            again = pickle.loads(buffer.getvalue())
        except Exception:
            continue
        if type(again) is type(error) and _message(again) == _message(error):
            return buffer.getvalue()
    return None


def _picklers() -> Iterator[type[pickle.Pickler]]:
    # Most exceptions need the first one only, and an import takes time that an event may not have.
    yield pickle.Pickler

    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            # Exceptions reduce to a call of their class with `args`. That fails for constructors
            # with other parameters; those are rebuilt by `__new__` and `__dict__`.
            if isinstance(value, BaseException) and _reduces_plainly(type(value)):
                return _rebuild, (type(value), value.args), value.__dict__ or None
            return super().reducer_override(value)

    yield cloudpickle.Pickler
    yield Pickler


def _reduces_plainly(kind: type) -> bool:
    methods = (getattr(kind, "__reduce__", None), getattr(kind, "__reduce_ex__", None))
    return methods == (BaseException.__reduce__, object.__reduce_ex__)


def _rebuild(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    return error
