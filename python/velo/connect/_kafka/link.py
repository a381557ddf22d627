"""The connection of a Kafka client: its first answer, its outages, and its errors by name."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    PositionLost,
    Superseded,
    Unreachable,
    missing,
)
from velo.connect.settings import Outages

try:
    from confluent_kafka import KafkaError, KafkaException
except ImportError as error:
    raise missing("`connect.kafka`", "kafka") from error

__all__ = ["ClientLog", "Link", "cause", "follows", "transient"]

_AGAIN = 0.1  # seconds until a call is made again
_CREATED = 2.0  # seconds until a topic that was just made is known
_OUTAGE = 1.0  # seconds without an answer that are an outage

_REFUSED = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
_SUPERSEDED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
}
# What becomes of results and calls once the client has given up: another error says why it has.
_FOLLOWING = {
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._FATAL,
    KafkaError._STATE,
}
_GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
# The client library tries again after these.
_DOWN = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._SSL,
    KafkaError._WAIT_COORD,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    # A broker, or this client, has yet to hear of a new leader.
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError._DESTROY_BROKER,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
}


def cause(error: BaseException) -> KafkaError:
    """Give the error within the exception."""
    if isinstance(error, SystemError) and error.__cause__ is not None:
        # The client has called for a delivery with the exception of a fatal error set already.
        error = error.__cause__
    if not isinstance(error, KafkaException):
        raise error
    found: KafkaError = error.args[0]
    return found


def transient(error: KafkaError) -> bool:
    """Say whether the client library gets over the error by itself."""
    return error.code() in _DOWN or bool(error.retriable())


def follows(error: KafkaError) -> bool:
    """Say whether the error only follows from another one, which is the reason."""
    return error.code() in _FOLLOWING


class ClientLog:
    """Takes the client library's own log, as a logger does: it helps to debug that library."""

    _log = logging.getLogger("velo.connect.librdkafka")

    def log(self, _level: int, message: str, *arguments: Any) -> None:
        """Log at level DEBUG: what a user must know comes as errors and outages."""
        self._log.debug(message, *arguments)


class Link:
    """What one client hears of its brokers.

    Attributes:
        name: The endpoint, for messages.
        servers: The addresses, for messages.
        outages: How often all brokers were away.
        down: Whether they are away now.
        doubtful: Whether one of them was lost, so that another one has to be asked: where a network
            is cut, the client waits for ever for those that it has no request to.
        remedy: What to do where a position is no longer there.
        failure: What makes the client useless, once it has told so.

    """

    def __init__(self, name: str, servers: str, connect_timeout: float) -> None:
        self.name = name
        self.servers = servers
        self.outages = Outages(name, servers)
        self.down = self.doubtful = False
        self.remedy = "Choose where to go on: `rewind=True` with `start=`, once"
        self._connected = False
        self._lost_at = 0.0
        self._connect_timeout = connect_timeout
        self.failure: ConnectError | None = None
        self._reason = ""

    def on_error(self, error: KafkaError) -> None:
        """Hear of an error that belongs to no record: the `error_cb` of a client."""
        if error.fatal() or error.code() in _REFUSED:
            self.failure = self.failure or self.named(error)
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.lost(self._reason or error.str())
        else:
            self._reason = error.str()
            self.doubtful = True

    def check(self) -> None:
        """Raise what makes the client useless."""
        if self.failure is not None:
            raise self.failure

    def lost(self, reason: str = "") -> None:
        """Note that no broker answers; without a reason, it is the last error."""
        reason = reason or self._reason
        if self._connected:
            self.down = True
            self._lost_at = time.monotonic()
            self.outages.wait(reason)

    def answered(self) -> None:
        """Note that a broker has answered.

        The client library tells of an outage a little late, and attempts of one client fail and
        succeed side by side, so an outage is over when a second has passed without bad news.
        """
        self._connected = True
        self.doubtful = False
        if self.down and time.monotonic() - self._lost_at > _OUTAGE:
            self.down = False
            self.outages.over()

    def ask(self, call: Callable[[], list[Any]], given_up: Callable[[], bool]) -> list[Any]:
        """Make a call that is answered for each partition, again while brokers are away.

        Raises:
            KafkaException: Another error, or any error once `given_up` says so.

        """
        begin = time.monotonic()
        while True:
            try:
                found = call()
                for place in found:
                    if place.error is not None:
                        raise KafkaException(place.error)
            except KafkaException as error:
                # This is how the client calls a partition, too, that has no leader for a moment.
                leaderless = cause(error).code() == KafkaError._UNKNOWN_PARTITION
                if not (leaderless or transient(cause(error))) or given_up():
                    raise
                # The leader of a new partition answers after a moment: that is no outage.
                if time.monotonic() - begin > _OUTAGE:
                    self.lost(cause(error).str())
                time.sleep(_AGAIN)
            else:
                self.answered()
                return found

    def metadata(self, client: Any, topic: str | None, given_up: Callable[[], bool]) -> Any:
        """Ask for the cluster's metadata, of one topic or of all, until there is an answer.

        Only for a client that has no partitions yet: a record that comes meanwhile is lost.

        Raises:
            Unreachable: When none comes within `connect_timeout`, or `given_up` says so; also where
                the topic has no leader within that time.
            AuthenticationFailed: When the user is refused.
            NoSuchTopic: When the topic does not exist, also a moment later: brokers learn of a new
                topic one after another, and some make one when it is asked for.

        """
        begin = time.monotonic()
        while True:
            found = self._metadata(client, topic, given_up)
            if topic is None or (error := found.topics[topic].error) is None:
                return found
            named = self.named(error, topic)
            if isinstance(named, NoSuchTopic):
                patience = _CREATED
            elif transient(error):
                patience = max(_CREATED, self._connect_timeout)
            else:
                raise named
            if given_up() or time.monotonic() > begin + patience:
                raise named
            time.sleep(_AGAIN)

    def _metadata(self, client: Any, topic: str | None, given_up: Callable[[], bool]) -> Any:
        deadline = time.monotonic() + self._connect_timeout
        while True:
            left = deadline - time.monotonic()
            begin = time.monotonic()
            try:
                found = client.list_topics(topic, timeout=max(0.01, min(0.5, left)))
                self.answered()
                return found
            except KafkaException as error:
                # The reason comes by `on_error`, which this poll calls.
                client.poll(max(0.0, min(left, _AGAIN - (time.monotonic() - begin))))
                self.check()
                if not transient(cause(error)):
                    raise self.named(cause(error)) from None
                if left <= 0 or given_up():
                    raise Unreachable(
                        f"{self.name}: no broker answers at {self.servers} within "
                        f"{self._connect_timeout:g} s: {self._reason or cause(error).str()}. Check "
                        "the address, and whether the port wants TLS (`tls=True`) or a user"
                    ) from None

    def named(
        self, error: KafkaError, topic: str | None = None, doing: str | None = None
    ) -> ConnectError:
        """Make an error of velo of one of the client library."""
        code, reason = error.code(), error.str()
        at = f"{self.name} at {self.servers}"
        about = f", topic `{topic}`" if topic else ""
        at += f"{about}: {doing}" if doing else about
        if code in _REFUSED:
            return AuthenticationFailed(
                f"{at}: the broker refuses the user: {reason}. Check `user`, `sasl`, and the "
                "password in `password_file` or KAFKA_PASSWORD"
            )
        if code in _FORBIDDEN:
            return PermissionDenied(
                f"{at}: the user may not do this: {reason}. The user needs access rules "
                "(ACLs): READ for topic and group to read, WRITE for the topic to write"
            )
        if code in _NO_TOPIC:
            return NoSuchTopic(f"{at}: there is no such topic: {reason}. Create it first")
        if code in _GONE:
            return PositionLost(
                f"{at}: a position is no longer there: {reason}. Its records were deleted "
                f"before they were read. {self.remedy}"
            )
        if code in _SUPERSEDED:
            return Superseded(
                f"{at}: {reason}: another program goes on with the same checkpoint, or a tick took "
                "longer than `transaction.timeout.ms`. Run one program: it begins behind the last "
                "tick that was committed"
            )
        if code == KafkaError.FENCED_INSTANCE_ID or "group.instance.id" in reason:
            return ConnectError(f"{at}: another program has the same `instance_id`: {reason}")
        if code in _DOWN:
            return Unreachable(f"{at}: {reason}")
        return ConnectError(f"{at}: {reason}")
