"""The form that a function's states have in a checkpoint, and how older forms become this one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from velo import _core
from velo._function.key_text import shown
from velo._function.pickle_imports import imports_of
from velo.errors import CheckpointError

__all__ = ["Migrate", "StateForm"]

Migrate = Callable[[dict[Any, Any], int], dict[Any, Any]]
"""Makes the state of this version of a function from one of an earlier version, and its number."""


@dataclass(frozen=True)
class StateForm:
    """The form of the states of one function.

    Attributes:
        function: The name of the function.
        checkpoint: Where the states are stored, for messages.
        version: Their version.
        migrate: Makes a state of this version from one of an earlier version.
        trusted: Whether states may hold pickles, which run code when they are loaded.

    """

    function: str
    checkpoint: str
    version: int
    migrate: Migrate | None
    trusted: bool

    def current(self, key: Hashable, state: bytes, version: int) -> bytes:
        """Return a state in this form, from one of a version.

        Args:
            key: Its key.
            state: The state, encoded.
            version: Its version.

        Raises:
            CheckpointError: When it is of a later version, or of an earlier one and cannot be
                migrated; when it holds a pickle and is not trusted.

        """
        self.refuse_pickle(key, state)
        if version == self.version:
            return state
        if self.migrate is None or version > self.version:
            raise self.other_version(key, version)
        try:
            migrated = self.migrate(_core.loads(state, self.trusted), version)
        except Exception as error:
            raise CheckpointError(
                f"`migrate` of `{self.function}` has raised for the state of the key {shown(key)}, "
                f"which is of version {version}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(migrated, dict):
            raise CheckpointError(
                f"`migrate` of `{self.function}` has to return a dict, and gave "
                f"{type(migrated).__name__} for the key {shown(key)}"
            )
        return _core.dumps(migrated)

    def other_version(self, key: Hashable, version: int) -> CheckpointError:
        """Return the error about a state of a version that this code cannot read."""
        todo = (
            "give it `migrate=`, which makes the one from the other"
            if version < self.version
            else "run the newer code, or restore a copy of the folder from before it"
        )
        return CheckpointError(
            f"the state of the key {shown(key)} in the checkpoint `{self.checkpoint}` is of "
            f"version {version}, and `{self.function}` has `state_version={self.version}`: {todo}"
        )

    def refuse_pickle(self, key: Hashable, state: bytes) -> None:
        """Refuse a state that holds a pickle, unless that is trusted."""
        if not self.trusted and (pickled := _core.pickle_in(state)) is not None:
            raise CheckpointError(
                f"the state of the key {shown(key)} of `{self.function}` holds a pickle, which "
                f"runs code when it is loaded (it imports {imports_of(pickled)}); make it of plain "
                "values, or say that nobody else writes to the checkpoint, by `trusted=True` or "
                "`--trust`"
            )
