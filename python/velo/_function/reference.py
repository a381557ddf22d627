"""How a stream function travels to a worker: by import path if it has one, else by value."""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import linecache
import os
import sys
import traceback
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from velo import _core
from velo._config import StreamConfig
from velo._function.import_paths import (
    check_file,
    encoded,
    import_paths,
    shadowing,
    unshadow,
    use_paths,
)
from velo._function.signature import takes_state
from velo._function.variables import Snapshot, name_of_unpicklable
from velo.errors import VeloError

__all__ = [
    "Reference",
    "by_value",
    "describe",
    "import_path",
    "load",
    "refuse_while_importing",
]

_numbers = itertools.count(1)
# Modules that a worker cannot import: the script itself, also under its name in children of
# `multiprocessing`.
_MAIN = ("__main__", "__mp_main__")
# The first byte of pickled data. No data in the encoding of events begins with it.
_PICKLED = b"\x80"
# Characters of source that travel with a function.
_LONGEST_SOURCE = 1 << 20
# The type of functions under `functools.cache` and `functools.lru_cache`.
_CACHE = type(functools.cache(len))
# The placeholder of cloudpickle for the file name of code.
_NO_FILE = "<dynamic-code>"
# In what asyncio says of a second loop in the same thread.
_SECOND_LOOP = ("from a running event loop", "while another loop is running")


# Functions that have come here by value.
by_value: weakref.WeakSet[types.FunctionType] = weakref.WeakSet()

# The modules that this worker is importing to load a function.
_importing: list[str] = []


def refuse_while_importing() -> None:
    """Refuse to run a stream that a module opens as a worker imports it.

    Raises:
        VeloError: When this worker is importing a module: the worker of the stream would import it,
            too, and so on.

    """
    if _importing:
        raise _runs_while_imported(_importing[-1], "a stream")


def _runs_while_imported(module: str, what: str) -> VeloError:
    return VeloError(
        f"module `{module}` runs {what} as it is imported, and workers import it "
        'too; do that in a function, or below `if __name__ == "__main__":`'
    )


class Reference:
    """One function on its way to workers.

    Attributes:
        number: Its number in workers.
        has_state: Whether it is called with a state besides its events.
        budgets: Limits of its streams that the supervisor watches: `stall_timeout`,
            `event_timeout` and `max_worker_memory`.
        limits: All limits of its streams, as `ClientLink.open` takes them.
        known_by: The links whose workers know it.
        preload: Modules that workers need to load it, besides its own. Known once `definition` is.

    """

    def __init__(self, function: Callable[..., Any], config: StreamConfig) -> None:
        self.number = next(_numbers)
        self.has_state = takes_state(function)
        self.preload: tuple[str, ...] = ()
        self.budgets = (config.stall_timeout, config.event_timeout, config.max_worker_memory)
        self.limits = _limits(config, config.buffer, config.full)
        self.known_by: list[weakref.ref[Any]] = []
        self._function = function
        # What the definition has taken along, of a function that travels by value.
        self._taken: Snapshot | None = None

    @classmethod
    def received(
        cls, definition: bytes, has_state: bool, preload: tuple[str, ...], config: StreamConfig
    ) -> Reference:
        """Make the reference of a function that has come from another machine.

        This process looks for modules where the program does, too, as far as that is here.
        """
        for path in _unpacked(definition)[2]:
            if (folder := os.fsdecode(path)) not in sys.path and os.path.isdir(folder):
                sys.path.append(folder)
        reference = cls.__new__(cls)
        reference.number = next(_numbers)
        reference.has_state = has_state
        reference.preload = preload
        reference.budgets = (
            config.stall_timeout,
            config.event_timeout,
            config.max_worker_memory,
        )
        reference.limits = _limits(config, config.buffer, config.full)
        reference.known_by = []
        reference._taken = None
        vars(reference)["definition"] = _at_home(definition)
        return reference

    def is_outdated(self) -> bool:
        """Return whether the function uses other values than those that its definition holds.

        One that travels by value takes its global variables, and those of functions around it,
        along. This notices that a variable was bound to another object, and not that an object has
        changed.
        """
        return self._taken is not None and self._taken.has_changed()

    def lane_limits(self, config: StreamConfig, most: int) -> _core.StreamLimits:
        """Return the limits of a lane, at most `most` of whose events are on their way."""
        return _limits(config, most, "wait")

    def __del__(self) -> None:
        """Note that no stream of it will be opened any more. Garbage is collected in any thread."""
        for link_of in self.known_by:
            if (link := link_of()) is not None:
                link.gone.append(self.number)

    @functools.cached_property
    def definition(self) -> bytes:
        """The argument of `load`. Computed when the first stream opens in a worker.

        Raises:
            TypeError: When it has no import path and holds something that cannot be pickled.

        """
        files: set[str] = set()
        described = describe(self._function, files)
        kind, content = described
        paths = [encoded(path) for path in import_paths()]
        if kind == "path":
            file = getattr(sys.modules.get(content[0]), "__file__", None)
            place = {"file": encoded(file) if isinstance(file, str) else None}
            return _core.dumps([*content, paths, place | {"shadows": shadowing()}])
        import pickle

        if _travels_by_value(described):
            self.preload = ("cloudpickle",)
            self._taken = Snapshot(_parts(self._function), lambda used: import_path(used) is None)
        about = {"shadows": shadowing(), "sources": _sources(files)}
        return pickle.dumps((paths, described, about), protocol=5)


def _unpacked(definition: bytes) -> tuple[bool, Any, list[Any], dict[str, Any]]:
    """Return whether a definition is pickled, what it describes, its paths, and the rest."""
    if definition.startswith(_PICKLED):
        import pickle

        paths, described, about = pickle.loads(definition)
        return True, described, paths, about
    module, name, paths, about = _core.loads(definition)
    return False, (module, name), paths, about


def _at_home(definition: bytes) -> bytes:
    """Return a definition as this machine would have made it: files lie elsewhere here."""
    pickled, described, _, about = _unpacked(definition)
    paths = [encoded(path) for path in import_paths()]
    if not pickled:
        return _core.dumps([*described, paths, {"file": None, "shadows": {}}])
    import pickle

    return pickle.dumps((paths, described, {**about, "shadows": {}}), protocol=5)


def _sources(files: set[str]) -> dict[str, list[str]]:
    """Return the source of code that is in no file, as of the cells of a notebook."""
    sources = {}
    for name in files:
        lines = [] if os.path.exists(name) else linecache.getlines(name)
        if lines and sum(map(len, lines)) <= _LONGEST_SOURCE:
            sources[name] = lines
    return sources


def describe(function: Any, files: set[str] | None = None) -> tuple[str, Any]:
    """Return a description from which another process can `build` the function.

    Args:
        function: The function.
        files: Gets the names of the files that its code comes from, where it travels by value.

    """
    from velo._function.chain import Chain

    if isinstance(function, Chain):
        return ("chain", [describe(part, files) for part in function.parts])
    path = import_path(function)
    if path is not None:
        return ("path", path)
    try:
        return ("value", _pickled(function, set() if files is None else files))
    except Exception as error:
        if isinstance(error, _CannotTravel):
            raise  # the innermost function is the one to change
        if isinstance(error, RecursionError):
            error = RecursionError("what it refers to is nested too deeply, or refers to itself")
        name = getattr(function, "__qualname__", repr(function))
        found = name_of_unpicklable(function, _plain)
        what = f"its variable {found} cannot be pickled ({error})" if found else str(error)
        raise _CannotTravel(
            f"`{name}` cannot be sent to a worker: {what}; define it at the top of a module, or "
            "have it make what cannot travel itself"
        ) from error


class _CannotTravel(TypeError):
    """A function cannot be sent to a worker."""


_CannotTravel.__name__ = _CannotTravel.__qualname__ = "TypeError"
_CannotTravel.__module__ = "builtins"


def _pickled(function: Any, files: set[str]) -> bytes:
    """Pickle a function by value, with the file names of its code, which tracebacks show.

    `files` gets these names.
    """
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if (reduce := getattr(type(value), "_reduce_in_place", None)) is not None:
                return reduce(value)
            if type(value) is _CACHE and import_path(value) is None:
                # Pickle knows it by its name alone, which a worker does not have.
                return _cached, (value.__wrapped__, value.cache_parameters())
            if type(value) is not types.CodeType:
                return super().reducer_override(value)
            files.add(value.co_filename)
            make, parts = self.dispatch_table[types.CodeType](value)
            named = (
                value.co_filename if type(part) is str and part == _NO_FILE else part
                for part in parts
            )
            return make, tuple(named)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=5).dump(function)
    return buffer.getvalue()


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """Give a function a cache of its own, as `functools.lru_cache` does."""
    return functools.lru_cache(**parameters)(function)


def _travels_by_value(described: tuple[str, Any]) -> bool:
    kind, content = described
    return any(map(_travels_by_value, content)) if kind == "chain" else kind == "value"


def _parts(function: Any) -> list[Any]:
    """Return the functions that a chain, a recorded function or a function itself consists of."""
    function = getattr(function, "inner", function)
    parts = [function] if (chain := getattr(function, "parts", None)) is None else chain
    return [_plain(getattr(part, "inner", part)) for part in parts]


def import_path(function: Any) -> tuple[str, str] | None:
    """Return the module and the name by which a worker can import the same function, if any."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module is None or name is None or module in _MAIN or "<locals>" in name:
        return None
    try:
        found: Any = sys.modules[module]
        for part in name.split("."):
            found = getattr(found, part)
    except (KeyError, AttributeError):
        return None
    return (module, name) if _plain(found) is _plain(function) else None


def _plain(function: Any) -> Any:
    """Return the function inside a `StreamFn`."""
    return getattr(function, "_function", function)


def load(definition: bytes) -> Callable[..., Any]:
    """Load a function in this process.

    A function with an import path is described by `[module, name, paths]`, in the encoding of
    events, which clients without Python use as well.

    Raises:
        ImportError: When its module cannot be imported here, or has no such name.

    """
    if definition.startswith(_PICKLED):
        import pickle

        paths, described, *about = pickle.loads(definition)
    else:
        module, name, paths, *about = _core.loads(definition)
        described = ("path", (module, name))
    use_paths([os.fsdecode(path) for path in paths])
    said: dict[str, Any] = about[0] if about else {}
    unshadow(said.get("shadows", {}))
    for name, lines in said.get("sources", {}).items():
        # Without a time of change, it stays for as long as this process.
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    function = build(described)
    if described[0] == "path":
        check_file(sys.modules.get(described[1][0]), said.get("file"))
    return function


def build(described: tuple[str, Any]) -> Callable[..., Any]:
    """Build a function from the result of `describe`."""
    kind, content = described
    if kind == "chain":
        from velo._function.chain import Chain

        return Chain([build(part) for part in content])
    if kind == "value":
        import pickle

        function: Callable[..., Any] = _plain(pickle.loads(content))
        if isinstance(function, types.FunctionType):
            by_value.add(function)
        return function
    module, name = content
    _importing.append(module)
    try:
        found: Any = importlib.import_module(module)
    except RuntimeError as error:
        # A program that ends in `asyncio.run(main())`, which the worker's own loop does not allow.
        if not any(text in str(error) for text in _SECOND_LOOP):
            raise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # `main` was never awaited
            traceback.clear_frames(error.__traceback__)
        raise _runs_while_imported(module, "an event loop") from None
    finally:
        _importing.pop()
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ImportError(f"there is no `{name}` in module `{module}` of the worker") from None
    function = _plain(found)
    return function


def _limits(config: StreamConfig, buffer: int, full: str) -> _core.StreamLimits:
    return _core.StreamLimits(
        buffer=buffer,
        max_bytes=1 << (config.max_bytes - 1).bit_length(),  # rings are powers of two
        full=full,
        stall_timeout=config.stall_timeout,
        event_timeout=config.event_timeout,
        max_worker_memory=config.max_worker_memory,
    )
