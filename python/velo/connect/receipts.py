"""Which records were received and are not acknowledged yet, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Generic, TypeVar

from velo.connect.model import Partition, Position

__all__ = ["Receipts"]

Token = TypeVar("Token")


class Receipts(Generic[Token]):
    """Of each partition, the positions in receipt order, each with what acknowledges it.

    A redelivered record has a lower position than the records around it. A commit therefore covers
    the records that came up to a position, and not those with a lower one.
    """

    def __init__(self) -> None:
        self._waiting: dict[Partition, dict[Position, Token]] = {}

    def __len__(self) -> int:
        """Count the records of all partitions."""
        return sum(map(len, self._waiting.values()))

    def add(self, partition: Partition, position: Position, token: Token) -> bool:
        """Note a record; False when it is here already, because the server sent it twice."""
        waiting = self._waiting.setdefault(partition, {})
        if position in waiting:
            return False
        waiting[position] = token
        return True

    def of(self, partition: Partition) -> Mapping[Position, Token]:
        """Give what waits in a partition, in receipt order."""
        return self._waiting.get(partition, {})

    def up_to(self, partition: Partition, position: Position) -> dict[Position, Token]:
        """Give what came up to a position; nothing when that was acknowledged before."""
        waiting = self._waiting.get(partition, {})
        if position not in waiting:
            return {}
        count = next(index for index, name in enumerate(waiting, 1) if name == position)
        return dict(islice(waiting.items(), count))

    def remove(self, partition: Partition, positions: Iterable[Position]) -> None:
        """Forget records that are acknowledged."""
        waiting = self._waiting[partition]
        for position in positions:
            waiting.pop(position, None)
