"""Settings of librdkafka, out of those of velo."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

__all__ = ["PRODUCER", "access_config", "check_config", "consumer_config"]

# What velo promises depends on these.
_OURS = {
    "bootstrap.servers": "`servers`",
    "group.id": "`group`",
    "group.instance.id": "`instance_id`",
    "enable.auto.commit": "velo commits what is handled",
    "enable.auto.offset.store": "velo commits what is handled",
    "auto.offset.reset": "`start`",
    "enable.partition.eof": "`until`",
    "error_cb": "errors are raised and logged",
    "on_delivery": "`flush` raises failed deliveries",
    "delivery.report.only.error": "`flush` raises failed deliveries",
    "transactional.id": "a checkpoint names its transactions",
    "max.in.flight.requests.per.connection": "no result overtakes one that is sent again",
    "max.in.flight": "no result overtakes one that is sent again",
    "sasl.username": "`user`",
    "sasl.password": "`password`, `password_file` or KAFKA_PASSWORD",
    "topic.metadata.refresh.interval.ms": "`refresh`",
}

PRODUCER = {
    "enable.idempotence": True,
    "max.in.flight.requests.per.connection": 1,
    "partitioner": "murmur2_random",
}
"""Each result once, to the partition of its key as Java's clients choose it.

One request at a time: brokers take any number as the first one of a producer in a partition. Where
a request with the first results is refused, as by a broker that is not the leader yet, and the next
one is taken, librdkafka counts the results of both as delivered.
"""


def check_config(config: Mapping[str, Any] | None) -> None:
    """Refuse settings that velo makes itself.

    Raises:
        ValueError: It names the one to use instead.

    """
    for name in config or ():
        if name in _OURS:
            raise ValueError(f"config has `{name}`, which is velo's: {_OURS[name]}")


def access_config(
    addresses: str,
    user: str | None,
    password: str | None,
    sasl: str,
    tls: bool,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
) -> dict[str, Any]:
    """Give the settings of the connection, with KAFKA_PASSWORD where there is no password.

    Raises:
        ValueError: When a user has no password.

    """
    encrypted = tls or tls_ca is not None or tls_cert is not None
    config: dict[str, Any] = {
        "bootstrap.servers": addresses,
        "client.id": "velo",
        "socket.keepalive.enable": True,
        "security.protocol": ("SASL_" if user is not None else "")
        + ("SSL" if encrypted else "PLAINTEXT"),
    }
    if user is not None:
        if (password := password or os.environ.get("KAFKA_PASSWORD")) is None:
            raise ValueError(
                f"user {user!r} has no password: give `password_file`, or set KAFKA_PASSWORD"
            )
        config |= {"sasl.mechanism": sasl, "sasl.username": user, "sasl.password": password}
    files = {
        "ssl.ca.location": tls_ca,
        "ssl.certificate.location": tls_cert,
        "ssl.key.location": tls_key,
    }
    return config | {setting: path for setting, path in files.items() if path is not None}


def consumer_config(
    group: str | None, instance_id: str | None, ends: bool, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the settings of a consumer that commits nothing by itself, and resets no position."""
    config: dict[str, Any] = {
        # A consumer without a group needs a name of one too; it joins none.
        "group.id": group if group is not None else "velo-without-a-group",
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": ends,
        # The client fetches 100,000 records ahead, then pauses for these milliseconds. In its
        # default of a second a fast reader uses up all of them, and waits.
        "fetch.queue.backoff.ms": 20,
    }
    if own.get("group.protocol") != "consumer":
        config["partition.assignment.strategy"] = "cooperative-sticky"
    if instance_id is not None:
        config["group.instance.id"] = instance_id
    return config
