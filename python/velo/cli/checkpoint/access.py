"""Opening a checkpoint to look at it, or to change it by hand."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from velo import _core
from velo._checkpoint.address import address_of, is_address
from velo._checkpoint.checkpoint import MOST_FINISHED
from velo._checkpoint.failing import torn
from velo._checkpoint.folder import checkpoints_in, claim, exists, holder
from velo._checkpoint.keys import pack, unpack
from velo._checkpoint.store import Row, Store
from velo._function.pickle_imports import imports_of
from velo.cli.checkpoint.forms import key_form, key_of, value_form
from velo.cli.errors import Failure
from velo.cli.text import inline
from velo.errors import CheckpointError

if TYPE_CHECKING:
    from velo._checkpoint.commits import Commit
    from velo._checkpoint.remote import Remote

__all__ = [
    "Fetched",
    "Place",
    "changing",
    "each",
    "failing",
    "find",
    "key_option",
    "path_argument",
    "reading",
    "remote_of",
    "shown_key",
    "state_form",
    "take_over_option",
]


class Place(click.Path):
    """A folder, as a `Path`, or the URL of an object store, as a text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Tell the one from the other."""
        return value if is_address(value) else super().convert(value, param, ctx)


path_argument = click.argument("path", type=Place(path_type=Path))
take_over_option = click.option(
    "--take-over",
    is_flag=True,
    help="Of a URL: also if a program may have it; that one ends with `Superseded`.",
)
key_option = click.option(
    "--key", "keys", required=True, multiple=True, metavar="JSON", help="The key: '\"card-1\"', 7."
)


def each(path: Path | str) -> list[Path] | list[str]:
    """Return the checkpoint at a path, or those of all functions of a supervisor's folder."""
    if not isinstance(path, Path):
        return [path]
    return [path] if exists(path) else checkpoints_in(path) or [path]


def _only(path: Path) -> Path:
    if exists(path):
        return path
    found = checkpoints_in(path) or [path]
    if len(found) > 1:
        raise CheckpointError(
            f"`{path}` holds the checkpoints of {len(found)} functions; name one, such as "
            f"`{found[0]}`"
        )
    return found[0]


class Fetched(Store):
    """A checkpoint of an object store, whose last tick was fetched to a temporary folder.

    Attributes:
        newest: Its newest commit.
        size: The bytes of all its objects.

    """

    newest: Commit
    size: int


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[Store]:
    """Open a checkpoint to read from it; a run or a supervisor may have it.

    Raises:
        Failure: When that fails.

    """
    with failing(), _opened(path) as store, store.errors():
        yield store


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Store]:
    if isinstance(path, Path):
        with contextlib.closing(Store(_only(path), writes=False)) as store:
            yield store
    else:
        with _fetched(path, writes=False) as (_, fetched):
            yield fetched


@contextlib.contextmanager
def _fetched(url: str, *, writes: bool) -> Iterator[tuple[Remote, Fetched]]:
    with remote_of(url) as remote, tempfile.TemporaryDirectory(prefix="velo-checkpoint-") as folder:
        newest = remote.bring(Path(folder))
        if newest is None:
            raise CheckpointError(f"there is no checkpoint at `{remote.url}`")
        with contextlib.closing(Fetched(Path(folder), writes=writes, shown=remote.url)) as store:
            store.newest, store.size = newest, remote.commits.size()
            yield remote, store


@contextlib.contextmanager
def remote_of(url: str) -> Iterator[Remote]:
    """Reach a checkpoint in an object store.

    Raises:
        Failure: When obstore is not installed.
        click.UsageError: When the URL does not fit.

    """
    try:
        from velo._checkpoint.remote import Remote

        remote = Remote(address_of(url), most_finished=MOST_FINISHED)
    except ImportError as error:
        raise Failure(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with contextlib.closing(remote):
        yield remote


@contextlib.contextmanager
def changing(path: Path | str, *, take_over: bool) -> Iterator[Store]:
    """Open a checkpoint that no other process has, to change it.

    What is changed of one in an object store counts in the end, and as a whole.

    Args:
        path: The folder or the URL.
        take_over: Whether to take one of an object store from the program that may have it.

    Raises:
        Failure: When that fails.
        click.UsageError: When a folder is to be taken over.

    """
    if isinstance(path, Path):
        if take_over:
            raise click.UsageError("`--take-over` is for URLs: a folder has a lock")
        opened = _changing_here(path)
    else:
        opened = _changing_there(path, take_over)
    with opened as store:
        yield store


@contextlib.contextmanager
def _changing_there(url: str, take_over: bool) -> Iterator[Store]:
    with failing(), _fetched(url, writes=True) as (remote, store):
        if not take_over and (holder := store.newest.holder) is not None:
            raise CheckpointError(
                f"the checkpoint `{remote.url}` may be in use by {holder}: stop that program, or, "
                "if it has ended, give `--take-over`"
            )
        with store.errors():
            yield store
        remote.put_in_place(store.newest, store)
        store.size = remote.commits.size()


@contextlib.contextmanager
def _changing_here(path: Path) -> Iterator[Store]:
    with failing():
        path = _only(path)
        if not exists(path):
            raise CheckpointError(f"there is no checkpoint at `{path}`")
        if (supervisor := holder(path.absolute().parent)) is not None:
            raise CheckpointError(
                f"the checkpoint `{path}` is in use by a supervisor, {supervisor}: stop it first"
            )
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
def failing() -> Iterator[None]:
    """Have errors of a checkpoint end the command.

    Raises:
        Failure: In place of them.

    """
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


def shown_key(row: Row, path: str | Path) -> Any:
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
