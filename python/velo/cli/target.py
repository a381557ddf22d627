"""Finds the stream function that `MODULE_OR_FILE:FUNCTION` names. Never runs it.

A file is imported under its module name, with its folder on `sys.path`, so that worker processes
can import the very same function.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from velo import StreamFn
from velo.cli.errors import Failure, without_ours
from velo.errors import VeloError

__all__ = ["load_target"]


def load_target(target: str) -> StreamFn[Any, Any]:
    """Import the module and return the stream function.

    Raises:
        click.UsageError: When there is no such file, module or stream function.
        Failure: When importing the module raises.

    """
    where, colon, name = target.rpartition(":")
    if not colon:
        where, name = target, ""
    module = _from_file(where) if _is_file(where) else _from_path(where)
    if not name:
        raise click.UsageError(f"name a function, as `{where}:FUNCTION`; {_there_are(module)}")
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, StreamFn):
        return found
    if found is None:
        raise click.UsageError(f"no function `{name}` in `{where}`; {_there_are(module)}")
    hint = "decorate it with `@stream_fn`" if callable(found) else _there_are(module)
    if callable(found) and _names(module):
        hint = f"{hint}, or {_there_are(module)}"
    raise click.UsageError(f"`{name}` in `{where}` is not a stream function; {hint}")


def _is_file(where: str) -> bool:
    return where.endswith(".py") or os.sep in where


def _names(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, StreamFn)]


def _there_are(module: ModuleType) -> str:
    names = _names(module)
    if not names:
        return "there is no stream function in it (one is made with `@stream_fn`)"
    return "there are: " + ", ".join(f"`{name}`" for name in names)


def _from_file(where: str) -> ModuleType:
    path = Path(where).resolve()
    if not path.is_file():
        raise click.UsageError(f"no such file: `{where}`")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise click.UsageError(f"`{where}` cannot be imported: its name must be like `name.py`")
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    sys.path.insert(0, str(folder))
    module = _import(".".join(parts), where)
    if Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise click.UsageError(
            f"`{where}` has the name of another module, `{module.__name__}`; rename the file"
        )
    return module


def _from_path(where: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    outer = ""
    for part in where.split("."):
        outer = f"{outer}.{part}" if outer else part
        if not part.isidentifier() or not _exists(outer, where):
            hint = f"; did you mean the file `{where}.py`?" if Path(f"{where}.py").exists() else ""
            raise click.UsageError(f"no module `{outer}` here or among what is installed{hint}")
    return _import(where, where)


def _exists(module: str, where: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False  # its parent is a plain module
    except Exception as error:
        raise _broken(where, error) from None


def _import(module: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise _broken(where, error) from None


def _broken(where: str, error: Exception) -> Failure:
    if isinstance(error, VeloError):  # written for users, and says what to change
        return Failure(f"importing `{where}` failed: {error}")
    error.__traceback__ = without_ours(error.__traceback__)
    lines = "".join(traceback.format_exception(error)).rstrip()
    return Failure(f"importing `{where}` failed:\n\n{lines}")
