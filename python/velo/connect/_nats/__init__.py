"""NATS: JetStream by durable and ordered consumers, and core NATS."""

from velo.connect._nats.endpoint import Nats, nats, of_url

__all__ = ["Nats", "nats", "of_url"]
