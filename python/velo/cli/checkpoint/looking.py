"""`velo checkpoint inspect`, `get`, `export`, `copy` and `verify`: they change nothing."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Hashable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from velo._api.journalled import unabsorbed
from velo._checkpoint import event_journal
from velo._checkpoint.checkpoint import PickledCut, cut_of
from velo._checkpoint.folder import claim, exists, holder
from velo._checkpoint.store import FORMAT, Row, Store, Tick
from velo.cli.checkpoint.access import (
    Fetched,
    Place,
    each,
    find,
    key_option,
    path_argument,
    reading,
    remote_of,
    shown_key,
    state_form,
)
from velo.cli.checkpoint.forms import key_form, value_form, value_of
from velo.cli.errors import Failure
from velo.cli.text import echo, inline
from velo.cli.units import duration, size
from velo.errors import CheckpointError

__all__ = ["copy", "export", "get", "inspect", "summary", "verify"]

# The most torn keys, and partitions, that are listed.
_MOST_TOLD = 20


@click.command(short_help="Show the last tick, keys and positions.")
@path_argument
@click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")
def inspect(path: Path | str, as_json: bool) -> None:
    """Show whose checkpoint it is, its last tick, how many keys it has, and the positions."""
    found = []
    for one in each(path):
        with reading(one) as store:
            found.append(summary(store))
    if as_json:
        click.echo(json.dumps(found if len(found) > 1 else found[0], indent=2))
        return
    for number, checkpoint in enumerate(found):
        if number:
            click.echo()
        _show(checkpoint)


def summary(store: Store) -> dict[str, Any]:
    """Return what a checkpoint holds, without its states."""
    about, last = store.about(), store.last()
    keys, finished = store.counts()
    found: dict[str, Any] = {
        "path": store.shown,
        "function": about.get("function"),
        "format": FORMAT,
        "state_version": about.get("state_version"),
        "created": about.get("created"),
        "epoch": 0 if last is None else last.epoch,
        "made": None if last is None else last.made,
        "keys": keys,
        "finished": finished,
        "bytes": sum(file.stat().st_size for file in store.path.glob("state.sqlite*")),
        "journal": event_journal.size_of(store.path),
        "used_by": holder(store.path),
        "positions": [],
        "mark": None,
    }
    if isinstance(store, Fetched):
        found |= {"bytes": store.size, "used_by": store.newest.by, "commit": store.newest.number}
    if last is not None:
        found |= _cut_form(last, store)
    return found


def _cut_form(last: Tick, store: Store) -> dict[str, Any]:
    """Return the JSON of positions and mark; a pickle, which they share, is not run."""
    try:
        positions, ahead, mark = cut_of(last, store.shown, trusted=False)
    except PickledCut as pickled:
        form = {"$pickle": pickled.imports}
        return {"positions": form, "mark": form}
    found = [
        {
            "partition": key_form(partition),
            "position": value_form(positions.get(partition)),
            "ahead": len(ahead.get(partition, ())),
        }
        for partition in positions | ahead
    ]
    return {"positions": found, "mark": value_form(mark)}


def _show(found: dict[str, Any]) -> None:
    made, created = found["made"], found["created"]
    if created is None:
        return echo(f"{found['path']} is empty")
    began = datetime.fromtimestamp(created, UTC).astimezone().isoformat(" ", "seconds")
    age = "" if made is None else f", made {duration(max(0.0, time.time() - made))} ago"
    finished = found["finished"]
    over = f", and {finished:,} whose functions have returned" if finished else ""
    echo(f"function   {inline(found['function'])}, states of version {found['state_version']}")
    echo(f"created    {began}, format {found['format']}")
    if "commit" in found:
        echo(f"last had   {inline(found['used_by'])}, which has made commit {found['commit']:,}")
    else:
        echo(f"used by    {inline(found['used_by'] or 'no process')}")
    echo(f"epoch      {found['epoch']:,}{age}")
    echo(f"keys       {found['keys']:,}{over}")
    echo(f"size       {size(found['bytes'])}")
    if found["journal"]:
        echo(f"journal    {size(found['journal'])}")
    positions = found["positions"]
    if isinstance(positions, dict):
        imports = inline(positions["$pickle"])
        return echo(f"positions  a pickle, which is not run: it imports {imports}")
    if found["mark"] is not None:
        echo(f"mark       {inline(json.dumps(key_form(value_of(found['mark']))))}")
    for place in positions[:_MOST_TOLD]:
        beyond = f", and {place['ahead']:,} records beyond it" if place["ahead"] else ""
        where = f"{json.dumps(place['partition'])}: {json.dumps(place['position'])}"
        echo(f"position   {inline(where)}{beyond}")
    if len(positions) > _MOST_TOLD:
        echo(f"           and {len(positions) - _MOST_TOLD:,} more partitions; `--json` shows all")


@click.command(short_help="Print the state of keys.")
@path_argument
@key_option
def get(path: Path | str, keys: tuple[str, ...]) -> None:
    """Print the state of each key, as `export` does. Exit code 1: a key is not there."""
    with reading(path) as store:
        missing = []
        for text in keys:
            _, packed = find(text)
            row = store.rows([packed]).get(packed)
            if row is None:
                missing.append(text)
            else:
                _write(row, store)
    if missing:
        raise Failure(f"`{path}` has no key {', '.join(map(inline, missing))}")


@click.command(short_help="Print all keys and states, as NDJSON.")
@path_argument
def export(path: Path | str) -> None:
    """Print a line of JSON for each key: {"key": ..., "state": ..., "changed": ...}.

    `state` is null when the function has returned; `changed` is in seconds since the epoch. It may
    be called while a run has the checkpoint, and shows one of its ticks as a whole. Types that JSON
    lacks are written as {"$tuple": [...]}, {"$bytes": "base64"}, and so on, which `set` reads.
    """
    with reading(path) as store:
        for row in store.all_rows():
            _write(row, store)


def _write(row: Row, store: Store) -> None:
    key = shown_key(row, store.shown)
    if row.is_torn:
        raise CheckpointError(f"the state of the key {json.dumps(key)} is torn; see `verify`")
    state = None if row.state is None else state_form(row.state)
    line = json.dumps({"key": key, "state": state, "changed": row.changed})
    sys.stdout.write(f"{line}\n")


@click.command(short_help="Copy a checkpoint, also while a run has it.")
@path_argument
@click.argument("place", type=Place(path_type=Path), metavar="FOLDER|URL")
def copy(path: Path | str, place: Path | str) -> None:
    """Copy the last tick to a new folder or prefix: a backup, or to go on from elsewhere."""
    for one in each(path):
        _copy(one, place if one == path else _within(place, one))


def _within(place: Path | str, one: Path | str) -> Path | str:
    name = Path(one).name
    if isinstance(place, Path):
        return place / name
    prefix, mark, options = place.partition("?")
    return f"{prefix.rstrip('/')}/{name}{mark}{options}"


def _copy(path: Path | str, place: Path | str) -> None:
    with reading(path) as store:
        if isinstance(place, Path):
            _copy_to_folder(store, place)
        else:
            _refuse_to_lose(store)
            with remote_of(place) as remote:
                remote.begin_with(store)
        last = store.last()
    epoch = 0 if last is None else last.epoch
    echo(f"epoch {epoch:,} copied to {inline(str(place))}")


def _refuse_to_lose(store: Store) -> None:
    """Refuse to leave records behind that the source does not give again."""
    positions: dict[Hashable, Any] = {}
    ahead: dict[Hashable, list[Any]] = {}
    if (last := store.last()) is not None:
        with contextlib.suppress(PickledCut):  # then all records count
            positions, ahead, _ = cut_of(last, store.shown, trusted=False)
    if count := unabsorbed(store.path, positions, ahead):
        raise Failure(
            f"`{store.shown}` has {count:,} records in its event journal that no tick has "
            "absorbed, and an object store has none: run it with the folder once more, and stop "
            "it, or copy it to a folder"
        )


def _copy_to_folder(store: Store, folder: Path) -> None:
    if exists(folder):
        raise Failure(f"`{folder}` holds a checkpoint already; name a new folder")
    claimed = claim(folder)
    try:
        event_journal.copy_to(store.path, folder)  # first: states may be ahead of it, not behind
        store.copy_to(folder)
    finally:
        claimed.release()


def _name(row: Row, path: str) -> str:
    try:
        return json.dumps(shown_key(row, path))
    except CheckpointError:
        return f"of the bytes {row.key.hex()}"


@click.command(short_help="Read all of a checkpoint, and name torn keys.")
@path_argument
def verify(path: Path | str) -> None:
    """Read all of a checkpoint. Exit code 1: it is torn; the keys and places are named."""
    for one in each(path):
        _verify(one)


def _verify(path: Path | str) -> None:
    torn: list[str] = []
    with reading(path) as store:
        problems = [*store.problems(), *event_journal.problems(store.path)]
        last = store.last()
        pickled = None if last is None else _pickled(last, store)
        count = 0
        for row in store.all_rows():
            count += 1
            if row.is_torn:
                torn.append(_name(row, store.shown))
    for problem in problems[:_MOST_TOLD]:
        echo(f"torn: {inline(problem)}")
    for key in torn[:_MOST_TOLD]:
        echo(f"torn: the state of the key {inline(key)}")
    if torn or problems:
        raise Failure(
            f"`{path}` is torn: {len(torn):,} of {count:,} keys, and {len(problems):,} places in "
            "the file; restore it from a copy, or `velo checkpoint delete` the keys, which begin "
            "anew"
        )
    epoch = 0 if last is None else last.epoch
    echo(f"epoch {epoch:,} is whole, with {count:,} keys")
    if pickled is not None:
        echo(f"its positions are a pickle, which is not run: it imports {inline(pickled.imports)}")


def _pickled(last: Tick, store: Store) -> PickledCut | None:
    """Read positions and mark; return what is wrong if they hold a pickle, which is not run."""
    try:
        cut_of(last, store.shown, trusted=False)
    except PickledCut as pickled:
        return pickled
    return None
