"""Recordings, for tests."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from velo import StreamFn, _core
from velo._function.recording import SUFFIX, frames

__all__ = ["Recording", "Step", "load_recording", "recordings"]


class Step:
    """One step of a recorded function.

    Attributes:
        kind: `"event"`, `"tick"` and `"end"` are inputs of the function; `"result"`, `"returned"`
            and `"raised"` are its outputs; `"cancelled"` is its end from outside.
        number: The number of its last event, from 1; 0 before the first one.

    """

    __slots__ = ("_payload", "kind", "number")

    def __init__(self, kind: str, number: int, payload: bytes) -> None:
        self.kind = kind
        self.number = number
        self._payload = payload

    @property
    def value(self) -> Any:
        """The event, the result, or type and message of the exception: a new copy each time.

        Raises:
            ValueError: When it could not be recorded.

        """
        step, value = _core.loads(self._payload)
        if step == "lost":
            raise ValueError(f"{self.kind} {self.number} could not be recorded: it was {value[1]}")
        return value

    def __repr__(self) -> str:
        value = _core.loads(self._payload)[1]
        return f"<Step {self.number} {self.kind} {value!r}>"


class Recording:
    """The events and results of one stream's function.

    Attributes:
        path: The file.
        head: `"function"` (module, name and file of each part), `"stream"`, `"velo"`, `"python"`,
            `"when"`, `"pid"` and `"state"`.
        steps: All steps in order.

    """

    def __init__(self, path: Path, head: dict[str, Any], steps: list[Step]) -> None:
        self.path = path
        self.head = head
        self.steps = steps

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

        Raises:
            LookupError: When the function cannot be found; the message says what to do.

        """
        found = [_find(*origin) for origin in self.head["function"]]
        if len(found) == 1:
            return found[0]
        from velo._function.chain import Chain

        return Chain(found)

    def __repr__(self) -> str:
        return f"<Recording of `{self.head['stream']}`: {len(self.steps)} steps>"


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording. An incomplete one, as after a crash, is read up to its last whole step.

    Values that velo's codec does not know are pickled: as with any pickle, load only recordings
    from a source that you trust.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When it is no recording, or one of another version.

    """
    path = Path(path)
    try:
        payloads = frames(path.read_bytes())
        kind, head = _core.loads(next(payloads, b"") or _core.dumps(("", None)))
        if kind != "head":
            raise ValueError("it has no beginning")
    except ValueError as error:
        raise ValueError(f"`{path}` cannot be read: {error}") from None
    steps: list[Step] = []
    number = 0
    for payload in payloads:
        kind, value = _core.loads(payload)
        if kind == "lost":
            kind = value[0]
        number += kind == "event"
        steps.append(Step(kind, number, payload))
    return Recording(path, head, steps)


def recordings(*paths: str | os.PathLike[str]) -> list[Path]:
    """Return the recordings at these paths: files, and the recordings in folders, by name."""
    found: list[Path] = []
    for path in map(Path, paths):
        found += sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
    return found


def _find(module: str | None, name: str | None, file: str | None) -> Callable[..., Any]:
    what = f"`{name}` of `{module}`"
    if name is None or module is None or "<" in name:
        raise LookupError(
            f"the function, {what}, has no name that it could be imported by; give it"
        )
    found: Any = _module(module, file)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise LookupError(f"there is no {what} any more; give the function to replay") from None
    return found._function if isinstance(found, StreamFn) else found


def _module(name: str, file: str | None) -> ModuleType:
    if name not in ("__main__", "__mp_main__"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    if file is None or not os.path.isfile(file):
        raise LookupError(f"module `{name}` cannot be imported; give the function to replay")
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
