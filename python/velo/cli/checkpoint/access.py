"""Opening a checkpoint to look at it, or to change it by hand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import click

from velo import _core
from velo._checkpoint.failing import torn
from velo._checkpoint.folder import claim, exists
from velo._checkpoint.keys import pack, unpack
from velo._checkpoint.store import Row, Store
from velo._function.pickle_imports import imports_of
from velo.cli.checkpoint.forms import key_form, key_of, value_form
from velo.cli.errors import Failure
from velo.cli.text import inline
from velo.errors import CheckpointError

__all__ = ["changing", "find", "key_option", "path_argument", "reading", "shown_key", "state_form"]

path_argument = click.argument("path", type=click.Path(path_type=Path))
key_option = click.option(
    "--key", "keys", required=True, multiple=True, metavar="JSON", help="The key: '\"card-1\"', 7."
)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Store]:
    """Open a checkpoint to read from it; a run may have it.

    Raises:
        Failure: When that fails.

    """
    with _failing():
        store = Store(path, writes=False)
        try:
            with store.errors():
                yield store
        finally:
            store.close()


@contextlib.contextmanager
def changing(path: Path) -> Iterator[Store]:
    """Open a checkpoint that no other process has, to change it.

    Raises:
        Failure: When that fails.

    """
    with _failing():
        if not exists(path):
            raise CheckpointError(f"there is no checkpoint at `{path}`")
        claimed = claim(path)
        try:
            store = Store(path, writes=True)
            try:
                with store.errors():
                    yield store
            finally:
                store.close()
        finally:
            claimed.release()


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise Failure(str(error)) from error


def find(text: str) -> tuple[Hashable, bytes]:
    """Return the key of `--key`, and its bytes.

    Raises:
        click.UsageError: When it is none.

    """
    try:
        form = json.loads(text)
    except ValueError:
        quoted = json.dumps(text)
        raise click.UsageError(
            f"`--key {inline(text)}` is no JSON; a text is in quotes: `--key '{inline(quoted)}'`"
        ) from None
    try:
        key = key_of(form)
        return key, pack(key)
    except (ValueError, CheckpointError) as error:
        raise click.UsageError(f"`--key {inline(text)}`: {error}") from None


def shown_key(row: Row, path: Path) -> Any:
    """Return the JSON of the key of a row.

    Raises:
        CheckpointError: When it is torn.

    """
    try:
        return key_form(unpack(row.key))
    except ValueError as error:
        raise torn(path, f"a key is not what was written: {error}") from None


def state_form(state: bytes) -> Any:
    """Return the JSON of a state; pickles are not run."""
    if (pickled := _core.pickle_in(state)) is not None:
        return {"$pickle": imports_of(pickled)}
    return value_form(_core.loads(state, False))
