"""moto's server, which speaks the protocol of Amazon S3."""

import sys

import moto.server  # noqa: F401

from servers.server import Server

__all__ = ["Moto"]


class Moto(Server):
    """A store that accepts every key, and forgets everything at its end."""

    name = "moto"

    def command(self):
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
