"""The state of a session, as its worker and the checkpoint of its supervisor know it."""

from __future__ import annotations

import hashlib
from typing import Any

from velo import _core
from velo._function.key_text import shown
from velo._function.reference import build
from velo._function.state_form import Migrate, StateForm
from velo.errors import CheckpointError

__all__ = ["KeptState"]


class KeptState:
    """The state of one session.

    Attributes:
        name: By which the checkpoint knows it: the name of its function, and the bytes of its key.
        key: The key.
        version: The version of the function's states.
        values: What the function has as its `state`.
        loaded: Whether this worker may store it.
        known: Whether the checkpoint may have it.
        unloaded: Whether its session leaves the memory, and has not ended for its function.

    """

    def __init__(self, terms: bytes) -> None:
        function, key, self.version, self._migrate, self._refusal = _core.loads(terms, False)
        self.name: tuple[str, bytes] = (function, key)
        self.key = None if self._refusal else _core.loads(key, False)
        self.values: dict[Any, Any] = {}
        self.loaded = self.known = self.unloaded = False
        self._found: tuple[bytes, int] | None = None
        self._failure: CheckpointError | None = None
        self._form: StateForm
        self._digest = b""

    def refuse(self) -> None:
        """Refuse a key that cannot be stored.

        Raises:
            CheckpointError: When it is one.

        """
        if self._refusal is not None:
            raise CheckpointError(self._refusal)

    def on_loaded(
        self, found: tuple[bytes, int] | CheckpointError | None, settings: dict[str, Any]
    ) -> None:
        """Take what the checkpoint has: a state and its version, nothing, or an error."""
        if isinstance(found, CheckpointError):
            self._failure = found
            return
        self.loaded = True
        self._found, self.known = found, found is not None
        function, _ = self.name
        self._form = StateForm(
            function, settings["path"], self.version, self._migrated_by, settings["trusted"]
        )

    def restore(self) -> None:
        """Fill the state with what the checkpoint has. The function was loaded.

        Raises:
            CheckpointError: When that cannot be used.

        """
        if self._failure is not None:
            raise self._failure
        found, self._found = self._found, None
        if found is None:
            self._digest = _digest(_core.dumps({}))
            return
        packed, version = found
        current = self._form.current(self.key, packed, version)
        self.values.update(_core.loads(current, self._form.trusted))
        self._digest = _digest(packed)

    @property
    def _migrated_by(self) -> Migrate | None:
        return None if self._migrate is None else self._call_migrate

    def _call_migrate(self, state: dict[Any, Any], version: int) -> dict[Any, Any]:
        migrate: Any = build(self._migrate)
        migrated: dict[Any, Any] = migrate(state, version)
        return migrated

    def snapshot(self) -> bytes | None:
        """Return the state, encoded; None: it is as in the snapshot before.

        Raises:
            CheckpointError: When it cannot be stored.

        """
        try:
            packed = _core.dumps(self.values)
        except Exception as error:
            raise CheckpointError(
                f"the state of the key {shown(self.key)} of `{self.name[0]}` cannot be stored: "
                f"{error}"
            ) from error
        self._form.refuse_pickle(self.key, packed)
        digest = _digest(packed)
        if digest == self._digest:
            return None
        self._digest, self.known = digest, True
        return packed


def _digest(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=16).digest()
