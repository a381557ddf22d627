"""What a source of Kafka reads, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from velo.connect._kafka.places import Start, Until

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """The settings of a source; `kafka` describes them."""

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

    @property
    def pattern(self) -> bool:
        """Whether topics may come and go."""
        return any(topic.startswith("^") for topic in self.topics)

    @property
    def plain(self) -> list[str]:
        """The topics that are named."""
        return [topic for topic in self.topics if not topic.startswith("^")]

    @property
    def cooperative(self) -> bool:
        """Whether partitions come and go one by one, instead of all at once."""
        return (
            self.group is None
            or self.config.get("group.protocol") == "consumer"
            or "cooperative" in str(self.config.get("partition.assignment.strategy"))
        )
