"""A checkpoint in an object store, and its working copy in a folder of this machine.

```
         tick: changes                     bring
run ──> commits.add ──> store.put      commits ──> working copy
             │               │
          the store     working copy ──> base, beside the ticks
```

The next tick names a base that has been written. Where the program ends before, the next program
finds the base, and its first tick names it.

The working copy says which commit it is the state of. It is behind the store or equal to it, and
never ahead: a tick is added to the store first.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from velo._checkpoint.address import Address
from velo._checkpoint.bucket import Absent, Bucket
from velo._checkpoint.changes import Changes, packed, unpacked
from velo._checkpoint.commits import Commit, Commits, by_hand, commit_name, is_object, number_of
from velo._checkpoint.failing import Torn, file_errors
from velo._checkpoint.folder import STATE
from velo._checkpoint.layout import check_is_whole
from velo._checkpoint.seal import Seal
from velo._checkpoint.store import Store
from velo._diagnostics.failpoints import reached
from velo.errors import CheckpointError

__all__ = ["Remote"]

_log = logging.getLogger("velo.checkpoint")

# This file in a working copy says that it is torn, and has to be fetched again.
_TORN = f"{STATE}.torn"
# A new base is written when the ticks behind the last one are more bytes than it and than this, or
# more than so many.
_LEAST, _MOST_TICKS = 64 * 1024, 1000
_LEVEL = 1
# After one that could not be written, so many seconds pass until the next.
_PAUSE = 60.0
_PIECE = 1024 * 1024
# So often the program of a checkpoint may remove what is being read.
_TRIES = 5


class Remote:
    """What one program does with a checkpoint in a store.

    Attributes:
        url: The store and the prefix.
        folder: The folder of the working copy.
        most_finished: See `Store.put`.

    Args:
        address: Where the checkpoint is.
        most_finished: As the attribute.

    """

    def __init__(self, address: Address, *, most_finished: int) -> None:
        bucket = Bucket(address)
        self.url = bucket.url
        self._address = address
        self.folder = address.folder
        self.most_finished = most_finished
        self._bucket = bucket
        self._seal = Seal(address.key, self.url)
        self.commits = Commits(bucket, self._seal)
        self._thread = ThreadPoolExecutor(1, "velo checkpoint base")
        # The base that is being written, or was found: its name and its size; None: there is none.
        self._writing: Future[tuple[str, int] | None] | None = None
        self._is_found = False
        self._not_before = 0.0
        self._closing = False
        self._base_bytes = 0
        # Numbers and bytes of the ticks behind the base.
        self._tail: list[tuple[int, int]] = []

    # The working copy.

    def bring(self, folder: Path) -> Commit | None:
        """Make the working copy in a folder, which this process has, what the newest commit says.

        Returns:
            That commit; None: the prefix is empty, and the working copy as well.

        Raises:
            CheckpointError: When something cannot be read, or is not what was written.

        """
        for tried in range(1, _TRIES + 1):
            found = self.commits.newest()
            if found is None and _state_of(folder) is not None:
                raise CheckpointError(
                    f"there is no checkpoint at `{self.url}`, and this machine has a working copy "
                    f"of one: see that the store is there as it was, for example that a folder is "
                    f"mounted; to begin anew, remove `{folder}` too"
                )
            try:
                self.bring_to(folder, found)
            except Absent:  # its program has removed it, if there is another commit
                again = self.commits.newest()
                if tried == _TRIES or again is None or found is None or again == found:
                    raise self._seal.torn(
                        "" if found is None else found.name, "an object that it needs is missing"
                    ) from None
            else:
                return found
        raise AssertionError("unreachable")

    def bring_to(self, folder: Path, commit: Commit | None) -> None:
        """Make the working copy what one commit says.

        Raises:
            Absent: When an object that it needs is not there.
            CheckpointError: As `bring`.

        """
        if commit is None or commit.last is None:
            self._anew(folder, None)
        elif (have := self._trusted_state_of(folder)) != commit.last and (
            have is None or not self._catches_up(folder, commit, have)
        ):
            self._anew(folder, commit)
            if not self._caught_up(folder, commit, _state_of(folder)):
                raise self._seal.torn(commit.name, "its ticks do not follow from its base")
        if commit is not None:
            with contextlib.closing(Store(folder, writes=True)) as store:
                store.note(commit.about)

    def _trusted_state_of(self, folder: Path) -> str | None:
        if not (folder / _TORN).exists():
            return _state_of(folder)
        _log.warning("the working copy `%s` of `%s` is torn: fetching it again", folder, self.url)
        return None

    def distrust(self, error: Torn) -> CheckpointError:
        """Have the next start fetch the working copy again; return the error to raise."""
        with file_errors(self.folder):
            (self.folder / _TORN).touch(0o600)
        return CheckpointError(
            f"the working copy `{self.folder}` of the checkpoint `{self.url}` is torn: "
            f"{error.why}; start again, and it is fetched again (`velo checkpoint verify` names "
            "what is torn in the store as well)"
        )

    def _anew(self, folder: Path, commit: Commit | None) -> None:
        """Put the base of a commit in place of what the working copy has."""
        for file in folder.glob(f"{STATE}*"):
            file.unlink()
        if commit is None or commit.base is None:
            Store(folder, writes=True).close()
            return
        new = folder / f"{STATE}.new"

        def take(data: Iterator[bytes]) -> None:
            assert commit.base is not None
            pieces = self._seal.pieces(commit.base, data)
            next(pieces)
            unpacks = zlib.decompressobj()
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with file_errors(folder), open(os.open(new, flags, 0o600), "wb") as file:
                for piece in pieces:
                    file.write(unpacks.decompress(piece))
                file.write(unpacks.flush())
                file.flush()
                os.fsync(file.fileno())

        try:
            self._bucket.read(commit.base, take)
        except zlib.error as error:
            raise self._seal.torn(commit.base, str(error)) from None
        os.rename(new, folder / STATE)

    def _catches_up(self, folder: Path, commit: Commit, have: str) -> bool:
        """Do the same with a working copy that may be in no state for that."""
        try:
            return self._caught_up(folder, commit, have)
        except CheckpointError:
            return False

    def _caught_up(self, folder: Path, commit: Commit, have: str | None) -> bool:
        """Apply the ticks behind the state that the working copy has; false: it is none of them."""
        base = None if commit.base is None else commit.base.removeprefix("base-")
        begun = have == base
        with contextlib.closing(Store(folder, writes=True)) as store, store.hurried():
            held: tuple[Commit, Changes] | None = None
            for tick, data in self.commits.ticks(commit, commit.behind):
                if not begun:
                    begun = tick.state == have
                    continue
                changes = self._unpacked(tick, data)
                # One that was undone is followed by one of the same epoch.
                if held is not None and held[1].tick.epoch < changes.tick.epoch:
                    self._apply(store, *held, last=False)
                held = tick, changes
            if held is not None:
                self._apply(store, *held, last=True)
        return begun

    def _unpacked(self, tick: Commit, data: bytes) -> Changes:
        try:
            return unpacked(data)
        except ValueError as error:
            raise self._seal.torn(tick.name, str(error)) from None

    def _apply(self, store: Store, commit: Commit, changes: Changes, *, last: bool) -> None:
        tick, rows, gone = changes
        now = store.last()
        if now is not None and now.epoch == tick.epoch and now.undoable:
            store.undo(now.epoch)
            now = store.last()
        if tick.epoch != (0 if now is None else now.epoch) + 1:
            raise self._seal.torn(commit.name, f"epoch {tick.epoch} does not follow")
        if not last:
            tick = tick.plain()
        store.put(tick, rows, gone, most_finished=self.most_finished, state=commit.state)

    def check_is_whole(self) -> None:
        """Check that there are no checkpoints of a group in place of this one.

        Raises:
            CheckpointError: When there are.

        """
        check_is_whole(self._address)

    # Its program.

    def take_over(self, found: Commit | None, about: dict[str, Any]) -> bool:
        """Claim the checkpoint; false: the working copy is not of the last tick any more.

        Args:
            found: The commit whose state the working copy has.
            about: What the checkpoint is about.

        Raises:
            CheckpointError: When it cannot be claimed.

        """
        self._claim = self.commits.claim(found, about)
        self._base_bytes = self._claim.base_bytes
        behind, last = self._claim.behind, self._claim.number
        names = {name: size for name, size in self._bucket.sizes().items() if is_object(name)}
        later = {n: size for n, size in names.items() if behind < number_of(n) <= last}
        bases = [name for name in later if name.startswith("base-")]
        no_ticks = {*bases, *map(commit_name, self._claim.claims)}
        self._tail = [(number_of(n), size) for n, size in later.items() if n not in no_ticks]
        if bases:
            self._writing = self._thread.submit(self._found, bases[::-1])
            self._is_found = True
        if self.commits.useless(names):  # the program before has ended while it removed them
            self._thread.submit(self._clean)
        before = None if found is None else found.last
        return self._claim.last == before

    def bring_claimed(self, folder: Path) -> None:
        """Make the working copy what the claim says.

        Raises:
            CheckpointError: As `bring`.

        """
        try:
            self.bring_to(folder, self._claim)
        except Absent:
            raise self._seal.torn(self._claim.name, "an object that it needs is missing") from None

    def begin_with(self, store: Store) -> None:
        """Begin a checkpoint with the last tick of another one.

        Raises:
            CheckpointError: When there is one already, or it cannot be written.

        """
        if self.commits.newest() is not None:
            raise CheckpointError(f"`{self.url}` holds a checkpoint already; name a new prefix")
        last = store.last()
        state = f"{0:016}-{secrets.token_hex(8)}"
        with tempfile.TemporaryDirectory(prefix="velo-checkpoint-") as folder:
            copy = Path(folder) / STATE
            store.copy_into(copy, state)
            name, count = self.put_base(copy)
        epoch = 0 if last is None else last.epoch
        first = {"epoch": epoch, "last": state, "base": name, "base_bytes": count, "by": by_hand()}
        self.commits.claim(None, store.about(), **first)

    def put_in_place(self, found: Commit, store: Store) -> None:
        """Put a state changed by hand in place of that of the newest commit.

        Args:
            found: The commit, as `bring` has returned it.
            store: What `bring` has made, and was changed since.

        Raises:
            CheckpointError: When there is another commit since, or something cannot be written.

        """

        def put_base(state: str) -> tuple[str, int]:
            copy = store.path / f"{STATE}.base"
            store.copy_into(copy, state)
            return self.put_base(copy)

        last = store.last()
        epoch = 0 if last is None else last.epoch
        self.commits.put_in_place(found, epoch, store.about(), put_base)

    def add(self, changes: Changes, about: dict[str, Any]) -> str:
        """Add a tick to the store; return which state it is.

        Raises:
            Superseded: When another program has taken over.
            CheckpointError: When the store does not take it.

        """
        data = packed(changes)
        base = self._written()
        commit = self.commits.add(changes.tick.epoch, about, data, base)
        self._tail.append((commit.number, len(data)))
        if base is not None:
            self._base_bytes = commit.base_bytes
            self._tail = [tick for tick in self._tail if tick[0] > commit.behind]
            self._thread.submit(self._clean)
        return commit.state

    def check(self) -> None:
        """Raise `Superseded` if another program has taken over."""
        self.commits.check()

    def _written(self) -> tuple[str, int] | None:
        """Give the new base, if one was found, or written since the last tick."""
        # For one that was found, the tick waits: it may be the only one of this program as well.
        if self._writing is None or not (self._writing.done() or self._is_found):
            return None
        writing, self._writing, self._is_found = self._writing, None, False
        try:
            return writing.result()
        except Exception as error:
            _log.warning(
                "no new base of the checkpoint `%s` was written, and ticks go on: %s",
                *(self.url, error),
            )
            self._not_before = time.monotonic() + _PAUSE
            return None

    def _found(self, names: list[str]) -> tuple[str, int] | None:
        """Give the first of some bases that is whole, and the state of a tick that is there.

        The program that has written it may not know that it has: in a folder, a power cut may have
        torn it, or it may be on no disk yet.
        """
        for name in names:
            try:
                if self.commits.has_tick(name.removeprefix("base-")):
                    count = self._bucket.read(name, partial(self._count_of, name))
                    self._bucket.sync(name)
                    return name, count
            except (Absent, CheckpointError, OSError) as error:
                _log.info("`%s` of the checkpoint `%s` is not used: %s", name, self.url, error)
        return None

    def _count_of(self, name: str, data: Iterator[bytes]) -> int:
        """Read a base to its end, and give its size."""
        pieces = self._seal.pieces(name, data)
        about = next(pieces)
        for _ in pieces:
            self._check_goes_on()
        count: int = about["bytes"]
        return count

    def begin_base(self) -> None:
        """Begin to write a new base beside the ticks, if it is time."""
        size = sum(size for _, size in self._tail)
        due = size > max(self._base_bytes, _LEAST) or len(self._tail) > _MOST_TICKS
        if due and self._writing is None and time.monotonic() > self._not_before:
            self._writing = self._thread.submit(self._write_base)

    def _write_base(self) -> tuple[str, int] | None:
        copy = self.folder / f"{STATE}.base"
        try:
            with contextlib.closing(Store(self.folder, writes=False)) as store:
                store.copy_into(copy)
            if Store.state_in(copy) is None:
                return None  # the run has gone back an epoch, and makes another tick
            Store.check_copy(copy)  # the ticks that it takes the place of are removed
            return self.put_base(copy)
        except Torn as error:
            raise self.distrust(error) from error
        finally:
            copy.unlink(missing_ok=True)

    def put_base(self, copy: Path) -> tuple[str, int]:
        """Write a base; return its name and its size.

        Args:
            copy: A copy of a working copy, which says which state it is.

        """
        state = Store.state_in(copy)
        assert state is not None
        small = copy.with_name(f"{copy.name}.packed")
        try:
            count, digest = _pack(copy, small)
            reached("base", 1)
            name = self.commits.put_base(state, lambda: self._pieces_of(small), count, digest)
            reached("base", 2)
            return name, count
        finally:
            small.unlink(missing_ok=True)

    def _pieces_of(self, file: Path) -> Iterator[bytes]:
        with file.open("rb") as data:
            while piece := data.read(_PIECE):
                self._check_goes_on()
                yield piece

    def _check_goes_on(self) -> None:
        if self._closing:
            raise CheckpointError("the run has ended")

    def _clean(self) -> None:
        try:
            self.commits.remove_useless()
        except CheckpointError as error:
            _log.warning("old objects stay, until the next base is there: %s", error)

    def give_up(self) -> None:
        """Try nothing again from now on, and write no base."""
        self._closing = True
        self._bucket.close()

    def close(self) -> None:
        """End the threads."""
        self.give_up()
        self._thread.shutdown(cancel_futures=True)


def _state_of(folder: Path) -> str | None:
    """Tell which state a working copy has; None: none that the store knows, or it is torn."""
    file = folder / STATE
    if not file.exists():
        return None
    try:
        with contextlib.closing(Store(folder, writes=True)) as store, store.errors():
            store.last()
            return store.state()
    except CheckpointError:
        return None


def _pack(file: Path, small: Path) -> tuple[int, str]:
    """Compress a file; return the bytes of the new one, and their SHA-256."""
    packs, count, digest = zlib.compressobj(_LEVEL), 0, hashlib.sha256()
    descriptor = os.open(small, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with file.open("rb") as data, open(descriptor, "wb") as out:
        while True:
            piece = data.read(_PIECE)
            some = packs.compress(piece) if piece else packs.flush()
            out.write(some)
            count += len(some)
            digest.update(some)
            if not piece:
                return count, digest.hexdigest()
