"""What the event loop asks of the thread that reads: commits, and calls of the client."""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaError, KafkaException

from velo.connect._kafka.assignment import GIVEN_AWAY, Assignment, places
from velo.connect._kafka.handover import Commit, Handover
from velo.connect._kafka.link import Link, cause, follows, transient
from velo.connect._kafka.reading import Reading
from velo.connect.errors import ConnectError
from velo.connect.settings import log

__all__ = ["Requests"]

_AGAIN = 0.5  # seconds until a request is tried again


class Requests:
    """Makes what was asked for, in the thread, and hands the answers over.

    Attributes:
        failure: What has ended the reading; None: nothing has.

    """

    def __init__(self, reading: Reading, link: Link, handover: Handover) -> None:
        self.failure: ConnectError | None = None
        self._reading = reading
        self._link = link
        self._handover = handover
        self._ask_at = 0.0

    def commit(self, consumer: Consumer, assignment: Assignment) -> None:
        """Make the commits that are due."""
        while (commit := self._handover.next_commit()) is not None:
            try:
                self._commit(commit, consumer, assignment)
            except KafkaException as error:
                self._on_commit_error(commit, cause(error), assignment)
            except BaseException as error:
                self._handover.answer(commit, error)
            else:
                self._link.answered()
                self._handover.answer(commit)

    def _commit(self, commit: Commit, consumer: Consumer, assignment: Assignment) -> None:
        commit.offsets = {n: at for n, at in commit.offsets.items() if n in assignment.names}
        if commit.offsets:
            for place in consumer.commit(offsets=places(commit.offsets), asynchronous=False):
                if place.error is not None:
                    raise KafkaException(place.error)

    def _on_commit_error(self, commit: Commit, error: KafkaError, assignment: Assignment) -> None:
        again = transient(error) or error.code() == KafkaError.REBALANCE_IN_PROGRESS
        if error.code() in GIVEN_AWAY:
            if self._reading.by_hand:
                assignment.warn_of_members()
            else:
                log.warning(
                    "%s: nothing is committed for %s: the group has given them away, and their "
                    "records come again",
                    self._link.name,
                    sorted(commit.offsets),
                )
            self._handover.answer(commit)
        elif again and not self._handover.closing:
            self._link.lost(error.str())
            self._handover.retry(commit, _AGAIN)
        else:
            reason = self.failure if follows(error) else None
            self._handover.answer(commit, reason or self._link.named(error))

    def answer(self) -> None:
        """Make the calls that the loop has asked for.

        Not within a call of the client: it takes no other change of what it reads then.
        """
        if time.monotonic() < self._ask_at:
            return
        for question in self._handover.questions():
            try:
                answer = question.call()
            except KafkaException as error:
                log.info("%s: %s", self._link.name, cause(error).str())
                answer = question.otherwise
            if answer is None:
                self._ask_at = time.monotonic() + _AGAIN
                self._handover.ask_again(question)
            else:
                self._handover.tell(question, answer)
