"""Recordings, for tests."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from velo import StreamFn, _core
from velo._function.pickle_imports import imports_of
from velo._function.recording import SUFFIX, frames
from velo.errors import RingCorrupted

__all__ = ["Recording", "Step", "load_recording", "recordings"]

_KINDS = ("event", "tick", "end", "result", "returned", "raised", "cancelled")


class Step:
    """One step of a recorded function.

    Attributes:
        kind: `"event"`, `"tick"` and `"end"` are inputs of the function; `"result"`, `"returned"`
            and `"raised"` are its outputs; `"cancelled"` is its end from outside.
        number: The number of its last event, from 1; 0 before the first one.

    """

    __slots__ = ("_payload", "_trust", "kind", "number")

    def __init__(self, kind: str, number: int, payload: bytes, trust: bool) -> None:
        self.kind = kind
        self.number = number
        self._payload = payload
        self._trust = trust

    @property
    def value(self) -> Any:
        """The event, the result, or type and message of the exception: a new copy each time.

        Raises:
            ValueError: When it could not be recorded.

        """
        step, value = _core.loads(self._payload, self._trust)
        if step == "lost":
            raise ValueError(f"{self.kind} {self.number} could not be recorded: it was {value[1]}")
        return value

    def __repr__(self) -> str:
        value = _core.loads(self._payload, self._trust)[1]
        return f"<Step {self.number} {self.kind} {value!r}>"


class Recording:
    """The events and results of one stream's function.

    Attributes:
        path: The file.
        head: `"function"` (module, name and file of each part), `"stream"`, `"velo"`, `"python"`,
            `"when"`, `"pid"`, `"hash_seed"` and `"state"`.
        steps: All steps in order.
        trust: Whether code that it names may run.

    """

    def __init__(
        self, path: Path, head: dict[str, Any], steps: list[Step], *, trust: bool = False
    ) -> None:
        self.path = path
        self.head = head
        self.steps = steps
        self.trust = trust

    @property
    def events(self) -> list[Any]:
        """The events that the function received."""
        return [step.value for step in self.steps if step.kind == "event"]

    @property
    def results(self) -> list[Any]:
        """The results that it yielded."""
        return [step.value for step in self.steps if step.kind == "result"]

    @property
    def whole(self) -> bool:
        """Whether it contains the stream's end. If not, the stream was killed, or still runs."""
        return bool(self.steps) and self.steps[-1].kind in ("returned", "raised", "cancelled")

    @property
    def name(self) -> str:
        """The function's name."""
        return " | ".join(name or "?" for _, name, _ in self.head["function"])

    def function(self) -> Callable[..., Any]:
        """Import the function that was recorded.

        Unless the recording is trusted, it must be a stream function of an installed module, or of
        one below the working directory: importing a file runs it.

        Raises:
            LookupError: When the function cannot be found; the message says what to do.

        """
        origins: list[list[str | None]] = self.head["function"]
        found = [_find(module, name, file, trust=self.trust) for module, name, file in origins]
        if len(found) == 1:
            return found[0]
        from velo._function.chain import Chain

        return Chain(found)

    def __repr__(self) -> str:
        return f"<Recording of `{self.head['stream']}`: {len(self.steps)} steps>"


def load_recording(path: str | os.PathLike[str], *, trust: bool = False) -> Recording:
    """Read a recording. An incomplete one, as after a crash, is read up to its last whole step.

    Args:
        path: The file.
        trust: Read values that velo's codec does not know, which are pickled. Reading a pickle runs
            code that its writer has chosen: trust only recordings from a source that you trust.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When it is no recording, one of another version, or one with pickled values that
            is not trusted; the message then names what they would import.

    """
    path = Path(path)
    try:
        payloads = frames(path.read_bytes())
        kind, head = _pair(next(payloads, b"") or _core.dumps(("", None)), trust)
        if kind != "head":
            raise ValueError("it has no beginning")
        _check_head(head)
        steps: list[Step] = []
        number = 0
        for payload in payloads:
            kind, value = _pair(payload, trust)
            if kind == "lost" and isinstance(value, tuple) and len(value) == 2:
                kind = value[0]
            if kind not in _KINDS:
                raise ValueError("it has a step of an unknown kind")
            number += kind == "event"
            steps.append(Step(kind, number, payload, trust))
    except (ValueError, RingCorrupted) as error:
        raise ValueError(f"`{path}` cannot be read: {error}") from None
    return Recording(path, head, steps, trust=trust)


def _pair(payload: bytes, trust: bool) -> tuple[Any, Any]:
    try:
        pair = _core.loads(payload, trust)
    except ValueError as error:
        if trust or len(error.args) != 2:
            raise
        names = imports_of(error.args[1])
        raise ValueError(
            f"it holds pickled values (they import {names}), which run code as they are read; "
            "`--trust`, or `trust=True`, reads them all the same"
        ) from None
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
        raise ValueError("it is no recording")
    return pair


def _check_head(head: Any) -> None:
    origins = head.get("function") if isinstance(head, dict) else None
    if not (
        isinstance(origins, list)
        and origins
        and all(isinstance(origin, list) and len(origin) == 3 for origin in origins)
        and all(part is None or isinstance(part, str) for origin in origins for part in origin)
        and isinstance(head.get("state"), tuple)
    ):
        raise ValueError("its beginning is none of a recording")


def recordings(*paths: str | os.PathLike[str]) -> list[Path]:
    """Return the recordings at these paths: files, and the recordings in folders, by name."""
    found: list[Path] = []
    for path in map(Path, paths):
        found += sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
    return found


def _find(
    module: str | None, name: str | None, file: str | None, *, trust: bool
) -> Callable[..., Any]:
    what = f"`{name}` of `{module}`"
    if name is None or module is None or "<" in name:
        raise LookupError(
            f"the function, {what}, has no name that it could be imported by; give it"
        )
    found: Any = _module(module, file, trust)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise LookupError(f"there is no {what} any more; give the function to replay") from None
    if isinstance(found, StreamFn):
        return found._function
    if not trust and not inspect.isasyncgenfunction(inspect.unwrap(found)):
        raise LookupError(f"{what} is no stream function; give the function to replay")
    return found  # type: ignore[no-any-return]  # what a trusted file names


def _module(name: str, file: str | None, trust: bool) -> ModuleType:
    if name not in ("__main__", "__mp_main__"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    if file is None or not os.path.isfile(file):
        raise LookupError(f"module `{name}` cannot be imported; give the function to replay")
    if not trust and not Path(file).resolve().is_relative_to(Path.cwd()):
        raise LookupError(
            f"module `{name}` is the file `{file}`, which is not below the working directory, and "
            "importing it runs it; trust the recording, or give the function to replay"
        )
    # A script, or a module that was imported from a folder which is not on `sys.path` here.
    alias = f"velo_replayed_{Path(file).stem}"
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(alias, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[alias] = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(file).parent))
        spec.loader.exec_module(module)
    return sys.modules[alias]
