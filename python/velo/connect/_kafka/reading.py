"""What a source of Kafka reads, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from velo.connect._kafka.places import Start, Until

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """The settings of a source; `kafka` describes them.

    Attributes:
        sought: The positions of a checkpoint, behind which to begin. None: there is no checkpoint.
        placed: Whether a partition that the group gives is read only once it is said where from.

    """

    topics: tuple[str, ...]
    group: str | None
    start: Start
    rewind: bool
    until: Until
    decode: Callable[[bytes], Any]
    decode_key: Callable[[bytes], Any]
    batch: int
    connect_timeout: float
    refresh: float
    revoke_timeout: float
    close_timeout: float
    config: Mapping[str, Any] = field(repr=False)  # it has the password
    sought: Mapping[Any, int] | None = None
    placed: bool = False

    @property
    def pattern(self) -> bool:
        """Whether topics may come and go."""
        return any(topic.startswith("^") for topic in self.topics)

    @property
    def plain(self) -> list[str]:
        """The topics that are named."""
        return [topic for topic in self.topics if not topic.startswith("^")]

    @property
    def by_hand(self) -> bool:
        """Whether this source reads all partitions, instead of those that a group gives it."""
        return self.group is None or self.sought is not None

    def behind(self, positions: Mapping[Any, int]) -> Reading:
        """Give the settings of a source that begins behind these positions."""
        config = {name: of for name, of in self.config.items() if name != "group.instance.id"}
        return replace(self, config=config, sought=positions)

    @property
    def classic(self) -> bool:
        """Whether its group has the classic protocol, and not the `consumer` protocol."""
        return self.config.get("group.protocol") != "consumer"

    @property
    def cooperative(self) -> bool:
        """Whether partitions come and go one by one, instead of all at once."""
        return (
            self.by_hand
            or not self.classic
            or "cooperative" in str(self.config.get("partition.assignment.strategy"))
        )
