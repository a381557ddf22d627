"""`velo checkpoint set`, `delete`, `reset`, `compact` and `rename`: between two runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from velo import _core
from velo._checkpoint import event_journal
from velo._checkpoint.store import Row, Store
from velo.cli.checkpoint.access import (
    Fetched,
    changing,
    each,
    find,
    key_option,
    path_argument,
    reading,
    take_over_option,
)
from velo.cli.checkpoint.forms import value_of
from velo.cli.errors import Failure
from velo.cli.text import echo, inline
from velo.cli.units import size

__all__ = ["compact", "delete", "rename", "reset", "set_state"]


@click.command("set", short_help="Give a key another state.")
@path_argument
@click.option("--key", required=True, metavar="JSON", help="The key: '\"card-1\"', 7.")
@click.argument("state", metavar="JSON|-")
@take_over_option
def set_state(path: Path | str, key: str, state: str, take_over: bool) -> None:
    r"""Give a key the state that JSON describes, as `get` and `export` print it; `-`: from stdin.

    \b
      velo checkpoint set fraud --key '"card-1"' '{"spent": 12.5}'

    The key begins with it when its next event comes.
    """
    text = sys.stdin.read() if state == "-" else state
    try:
        value = value_of(json.loads(text))
    except ValueError as error:
        raise click.UsageError(f"the state: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError("the state is a dict: '{\"spent\": 12.5}'")
    _, packed = find(key)
    with changing(path, take_over=take_over) as store:
        version = store.about().get("state_version", 1)
        row = Row.of(packed, _core.dumps(value), version, int(time.time()))
        store.change([row], [])
    echo(f"the key {inline(key)} is set")


@click.command(short_help="Forget keys.")
@path_argument
@key_option
@take_over_option
def delete(path: Path | str, keys: tuple[str, ...], take_over: bool) -> None:
    """Forget keys: with its next event each begins anew. Exit code 1: a key is not there."""
    found = {text: find(text)[1] for text in keys}
    with changing(path, take_over=take_over) as store:
        known = store.rows(list(found.values()))
        missing = ", ".join(inline(text) for text, packed in found.items() if packed not in known)
        if not known:
            raise Failure(f"`{path}` has no key {missing}")
        store.change([], list(known))
    echo(f"{len(known):,} keys are forgotten")
    if missing:
        raise Failure(f"`{path}` has no key {missing}")


@click.command(short_help="Forget everything: the next run begins anew.")
@path_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@take_over_option
def reset(path: Path | str, yes: bool, take_over: bool) -> None:
    """Forget all keys, positions and epochs: the next run begins as the first one did.

    Records in the journal are forgotten, too. The results in the sink stay.
    """
    with reading(path) as store:
        keys, finished = store.counts()
        function = store.about().get("function")
    if not yes:
        click.confirm(
            f"forget {keys + finished:,} keys and all positions of `{inline(function)}`?",
            abort=True,
        )
    with changing(path, take_over=take_over) as store:
        event_journal.clear(store.path)
        store.clear()
        store.compact(None)
    echo(f"{inline(path)} is empty")


@click.command(short_help="Make the file small, and forget old keys.")
@path_argument
@click.option(
    "--ttl",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Forget keys whose states have not changed for this time.",
)
@take_over_option
def compact(path: Path | str, ttl: float | None, take_over: bool) -> None:
    """Write the file anew, without gaps. It takes as much room again while it works.

    In an object store, one new object takes the place of all others.
    """
    for one in each(path):
        _compact(one, ttl, take_over)


def _compact(path: Path | str, ttl: float | None, take_over: bool) -> None:
    with changing(path, take_over=take_over) as store:
        before = _bytes(store)
        store.compact(None if ttl is None else int(time.time() - ttl))
    echo(f"{inline(path)}: {size(before)} before, {size(_bytes(store))} now")


def _bytes(store: Store) -> int:
    if isinstance(store, Fetched):
        return store.size
    return sum(file.stat().st_size for file in store.path.glob("state.sqlite*"))


@click.command(short_help="Say that its function has another name now.")
@path_argument
@click.argument("function", metavar="NAME")
@take_over_option
def rename(path: Path | str, function: str, take_over: bool) -> None:
    """Say that the function of a checkpoint has another name now: its states and positions stay."""
    with changing(path, take_over=take_over) as store:
        before = store.about().get("function")
        store.note({"function": function})
    echo(f"{inline(path)} belongs to `{inline(function)}` now, and not to `{inline(before)}`")
