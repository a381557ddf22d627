"""NATS: JetStream by durable and ordered consumers, and core NATS."""

from velo.connect.errors import missing

try:
    from velo.connect._nats.endpoint import Nats, nats, of_url
except ImportError as error:
    if str(error.name).partition(".")[0] != "nats":
        raise
    raise missing("`connect.nats`", "nats") from error

__all__ = ["Nats", "nats", "of_url"]
