"""The commits of a checkpoint in an object store: a numbered log that one program adds to.

| object | is |
| --- | --- |
| `commit-0000000000000017` | a tick: what it changes, or the name of the object that holds that |
| `commit-0000000000000018` | a claim: another program has taken over, with the state of commit 17 |
| `commit-0000000000000019` | a claim of `velo checkpoint`, whose base is a state changed by hand |
| `base-0000000000000012-7b…` | the state up to tick 12, as a whole |
| `data-0000000000000017-7b…` | the changes of tick 17, where they are large |

Each commit is created only if there is none of its number. So a program that was taken over finds a
claim where it would put its next tick, and is over. The state is that of the base, and of the ticks
behind it. A program removes what a new base has made useless, by numbers; claims stay, until so
many later ones are there that no program lives that they would have to stop.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from velo._checkpoint.bucket import Absent, Bucket
from velo._checkpoint.seal import Seal
from velo._diagnostics.failpoints import reached
from velo.connect.errors import Superseded
from velo.errors import CheckpointError

__all__ = ["Commit", "Commits", "by_hand", "commit_name", "is_object", "number_of"]

_NAME = re.compile(r"(commit|base|data)-([0-9]{16})(-[0-9a-f]{16})?")
_HOLDER = re.compile(r"process ([0-9]+) on (.+)")
# So many claims are kept, and so often one is tried.
_CLAIMS, _TRIES = 1000, 20
# Larger changes are an object of their own, which is written in parts; bytes.
_LARGE = 8 * 1024 * 1024
# So many commits are read at a time.
_AT_A_TIME, _THREADS = 64, 8


@dataclass(frozen=True)
class Commit:
    """A commit without its changes.

    Attributes:
        number: Its number, from 1.
        kind: "tick" or "claim".
        nonce: What no other commit has.
        by: The program that has made it: "process 7 on host", or "velo checkpoint" with the same.
        made: When that was, in seconds since the epoch of Unix.
        epoch: The number of the last tick; 0 before the first one.
        about: The function, the version of its states, the name and the creation.
        last: The number and the nonce of the last tick: which state it is. None: there was none.
        base: The name of the base; None: there is none.
        base_bytes: Its size.
        claim: The number of the claim of the program that has made it.
        claims: Of a claim: the numbers of those before it that are kept, and its own.
        data: The name of the object that holds the changes; None: the commit itself.

    """

    number: int
    kind: str
    nonce: str
    by: str
    made: float
    epoch: int
    about: dict[str, Any]
    last: str | None
    base: str | None = None
    base_bytes: int = 0
    claim: int = 0
    claims: tuple[int, ...] = ()
    data: str | None = None

    @property
    def name(self) -> str:
        """The name of its object."""
        return commit_name(self.number)

    @property
    def state(self) -> str:
        """The number and the nonce."""
        return f"{self.number:016}-{self.nonce}"

    @property
    def behind(self) -> int:
        """The number behind which ticks change the base."""
        return number_of(self.base)

    @property
    def holder(self) -> str | None:
        """The program that has the checkpoint, as far as this machine can tell.

        None: it is this process, one of this machine that has ended, or `velo checkpoint`. A
        program says nothing when it ends, so that one of another machine counts as running.
        """
        found = _HOLDER.fullmatch(self.by)
        if found is None:
            return None
        here, pid = found[2] == socket.gethostname(), int(found[1])
        return None if here and (pid == os.getpid() or not _runs(pid)) else self.by


class Commits:
    """The log of one checkpoint.

    Args:
        bucket: Its objects.
        seal: What seals them.

    """

    def __init__(self, bucket: Bucket, seal: Seal) -> None:
        self.url = bucket.url
        self._bucket = bucket
        self._seal = seal
        self._claims: tuple[int, ...] = ()
        self._last: Commit | None = None
        self._error: Exception | None = None

    # Reading.

    def newest(self) -> Commit | None:
        """Give the commit with the highest number; None: the prefix is empty.

        Raises:
            CheckpointError: When there is none among other objects, or it cannot be read.

        """
        tried = 0
        while True:
            number = self._highest()
            if number == 0:
                return None
            try:
                return self._read(number)[0]
            except Absent:  # its program has gone on since
                tried = number if tried != number else self._missing(number)

    def _highest(self) -> int:
        names = self._bucket.sizes()
        foreign = [name for name in names if not is_object(name)]
        own = (name for name in names if name.startswith("commit-") and is_object(name))
        highest = max(map(number_of, own), default=0)
        if highest == 0 and foreign:
            more = "" if len(foreign) == 1 else f" and {len(foreign) - 1:,} more"
            raise CheckpointError(
                f"`{self.url}` holds no checkpoint, and other objects: `{foreign[0]}`{more}; name "
                "a new prefix"
            )
        if highest == 0 and names:
            raise self._seal.torn(commit_name(1), f"no commit is there, and `{next(iter(names))}`")
        return highest

    def _missing(self, number: int) -> int:
        raise self._seal.torn(commit_name(number), "it is missing")

    def _read(self, number: int) -> tuple[Commit, bytes]:
        name = commit_name(number)
        told, payload = self._seal.opened(name, self._bucket.get(name))
        try:
            own = {field: told[field] for field in Commit.__dataclass_fields__}
            commit = Commit(**{**own, "claims": tuple(own["claims"])})
            names = [name for name in (commit.base, commit.data) if name is not None]
            if commit.number != number or not all(map(_NAME.fullmatch, names)):
                raise ValueError(f"its number is {commit.number}, and it names {names}")
        except (KeyError, TypeError, ValueError) as error:
            raise self._seal.torn(name, f"it is no commit: {error!r}") from None
        return commit, payload

    def ticks(self, newest: Commit, behind: int) -> Iterator[tuple[Commit, bytes]]:
        """Yield the ticks behind a number, with their changes, up to a commit.

        Raises:
            CheckpointError: When one cannot be read.
            Absent: When one is not there.

        """
        numbers = range(behind + 1, newest.number + 1)
        with ThreadPoolExecutor(_THREADS, "velo checkpoint") as threads:
            for first in range(0, len(numbers), _AT_A_TIME):
                some = numbers[first : first + _AT_A_TIME]
                for commit, changes in threads.map(self._changes, some):
                    if commit.kind == "tick":
                        yield commit, changes

    def _changes(self, number: int) -> tuple[Commit, bytes]:
        commit, payload = self._read(number)
        if commit.data is not None:
            payload = self._seal.opened(commit.data, self._bucket.get(commit.data))[1]
        return commit, payload

    def has_tick(self, state: str) -> bool:
        """Whether one of the ticks that are there has led to a state.

        A base may be of none: `velo checkpoint` writes one, and then finds that a program has gone
        on, so that its number is that of another commit.

        Raises:
            CheckpointError: When the commit of its number cannot be read.

        """
        try:
            commit = self._read(int(state.split("-")[0]))[0]
        except Absent:
            return False
        return commit.kind == "tick" and commit.state == state

    def size(self) -> int:
        """Give the bytes of all objects."""
        return sum(self._bucket.sizes().values())

    # Writing.

    def claim(self, found: Commit | None, about: dict[str, Any], **more: Any) -> Commit:
        """Take the checkpoint over from the program that has it.

        Args:
            found: The newest commit that is known; None: the prefix is empty.
            about: What a new checkpoint is about.
            more: What else a first commit says.

        Returns:
            The claim, which has the state of the commit before it.

        Raises:
            CheckpointError: When other programs always come first, or the store does not tell who
                comes first.

        """
        for _ in range(_TRIES):
            claim = self._next_claim(found, about, more)
            data = self._seal.closed(claim.name, asdict(claim))
            reached("claim", 1)
            if self._bucket.create(claim.name, data):
                if not self._bucket.excludes(claim.name, data):
                    raise CheckpointError(
                        f"the store of `{self.url}` writes an object a second time where it is to "
                        "be created only if there is none (`If-None-Match: *`), so that it cannot "
                        "stop a program that was taken over: use another store"
                    )
                if self._highest() == claim.number:
                    reached("claim", 2)
                    self._last, self._claims = claim, claim.claims
                    return claim
                # Its program has gone on, and removed the commit of this number; or another one has
                # taken over from this claim. It stays: a number once used is to stay so.
            found = self.newest()
        raise CheckpointError(
            f"other programs have taken over the checkpoint `{self.url}` {_TRIES} times while this "
            "one tried to: let one program have it"
        )

    def _next_claim(
        self, found: Commit | None, about: dict[str, Any], more: dict[str, Any]
    ) -> Commit:
        number = 1 if found is None else found.number + 1
        fresh: dict[str, Any] = {"number": number, "nonce": _nonce(), "made": time.time()}
        fresh["by"] = _program()
        if found is None:
            begun: dict[str, Any] = {**fresh, "epoch": 0, "last": None, **more}
            return Commit(kind="claim", about=about, claim=1, claims=(1,), **begun)
        before = found if found.kind == "claim" else self._claim_of(found)
        claims = (*before.claims, number)[-_CLAIMS:]
        return replace(found, kind="claim", data=None, claim=number, claims=claims, **fresh)

    def _claim_of(self, commit: Commit) -> Commit:
        try:
            return self._read(commit.claim)[0]
        except Absent:
            raise self._seal.torn(commit_name(commit.claim), "it is missing") from None

    def put_in_place(
        self,
        found: Commit,
        epoch: int,
        about: dict[str, Any],
        put_base: Callable[[str], tuple[str, int]],
    ) -> None:
        """Put a state changed by hand in place of that of the newest commit, with one claim.

        A tick would count up the epoch, which a sink may have, too. So this is a base.

        Args:
            found: The commit whose state was changed.
            epoch: The number of the last tick.
            about: What the checkpoint is about now.
            put_base: Writes the base of a state of this name; returns its name and its size.

        Raises:
            CheckpointError: When there is another commit since, or something cannot be written;
                then the checkpoint is as it was.

        """
        claim = self._next_claim(found, about, {})
        base, base_bytes = put_base(claim.state)
        changed: dict[str, Any] = {"by": by_hand(), "epoch": epoch, "about": about}
        claim = replace(claim, last=claim.state, base=base, base_bytes=base_bytes, **changed)
        data = self._seal.closed(claim.name, asdict(claim))
        reached("claim", 1)
        created = self._bucket.create(claim.name, data)
        if not created:
            self._bucket.delete([base])
        if not created or self._highest() != claim.number:
            raise CheckpointError(
                f"the checkpoint `{self.url}` is in use: a program has gone on with it meanwhile, "
                "and nothing was changed; stop the program first"
            )
        reached("claim", 2)
        self._last, self._claims = claim, claim.claims
        self.remove_useless()

    def add(self, epoch: int, about: dict[str, Any], changes: bytes, base: Any = None) -> Commit:
        """Add a tick.

        Args:
            epoch: Its number.
            about: What the checkpoint is about.
            changes: What it changes.
            base: The name and the size of a new base.

        Raises:
            Superseded: When another program has taken over.
            CheckpointError: When it cannot be written; then nothing more can be.

        """
        if self._error is not None:
            raise self._error
        assert self._last is not None
        try:
            self._last = self._added(self._last, epoch, about, changes, base)
        except Exception as error:
            self._error = error
            raise
        return self._last

    def _added(
        self, last: Commit, epoch: int, about: dict[str, Any], changes: bytes, base: Any
    ) -> Commit:
        number, nonce = last.number + 1, _nonce()
        tick = replace(
            last,
            number=number,
            kind="tick",
            nonce=nonce,
            made=time.time(),
            epoch=epoch,
            about=about,
            last=f"{number:016}-{nonce}",
            claims=(),
            data=None,
        )
        if base is not None:
            tick = replace(tick, base=base[0], base_bytes=base[1])
        if len(changes) > _LARGE:
            tick = replace(tick, data=f"data-{tick.state}")
            sealed = self._seal.closed(tick.data or "", {"kind": "data"}, changes)
            self._bucket.put(tick.data or "", lambda: [sealed])
            changes = b""
        reached("upload", 1)
        if not self._bucket.create(tick.name, self._seal.closed(tick.name, asdict(tick), changes)):
            raise self._superseded(number)
        reached("upload", 2)
        return tick

    def check(self) -> None:
        """Raise if another program has taken over.

        Raises:
            Superseded: When one has.

        """
        assert self._last is not None
        if self._bucket.exists(commit_name(self._last.number + 1)):
            self._error = self._superseded(self._last.number + 1)
            raise self._error

    def _superseded(self, number: int) -> Superseded:
        who, when = "another program", ""
        try:
            commit = self._read(number)[0]
        except (Absent, CheckpointError):
            pass
        else:
            who = commit.by
            when = f", at {datetime.fromtimestamp(commit.made, UTC).isoformat(' ', 'seconds')}"
        return Superseded(
            f"{who} has taken over the checkpoint `{self.url}`{when}, and goes on with it: nothing "
            "more of this program counts"
        )

    def put_base(self, state: str, pieces: Any, count: int, digest: str) -> str:
        """Write a base, and return its name.

        Args:
            state: Which state it is.
            pieces: Gives its bytes, each time that it is called.
            count: How many they are.
            digest: Their SHA-256.

        """
        name = f"base-{state}"
        head = self._seal.head(name, {"kind": "base"}, count, digest)

        def all_pieces() -> Iterator[bytes]:
            yield head
            yield from pieces()

        self._bucket.put(name, all_pieces)
        return name

    def remove_useless(self) -> None:
        """Remove what the base of the last commit has made useless.

        All of it has numbers up to that of the base, so that a program which was taken over
        removes nothing that its successor has made.
        """
        if names := self.useless(self._bucket.sizes()):
            reached("base", 3)
            self._bucket.delete(names)

    def useless(self, names: Iterable[str]) -> list[str]:
        """Give those of these names whose objects the base of the last commit has made useless."""
        last = self._last
        if last is None or last.base is None:
            return []
        keep = {last.base, *map(commit_name, self._claims)}
        return [
            name
            for name in names
            if is_object(name) and number_of(name) <= last.behind and name not in keep
        ]


def is_object(name: str) -> bool:
    """Whether an object of a checkpoint may have this name."""
    return _NAME.fullmatch(name) is not None


def number_of(name: str | None) -> int:
    """Return the number in the name of an object; 0: there is none."""
    return 0 if name is None else int(name.split("-")[1])


def commit_name(number: int) -> str:
    """Return the name of the object of a commit."""
    return f"commit-{number:016}"


def _nonce() -> str:
    return secrets.token_hex(8)


def by_hand() -> str:
    """Return what commits that `velo checkpoint` makes say of the program that has made them."""
    return f"velo checkpoint, {_program()}"


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs, or may run."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _program() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
