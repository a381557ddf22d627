"""A Redis server."""

import redis

from servers.server import Server, program


class Redis(Server):
    """redis-server with an append-only file: it comes back with its data.

    `options` are more arguments of the program.
    """

    name = "redis-server"

    def __init__(self, folder, *options):
        super().__init__(folder)
        self.options = options
        self.program = program("redis-server", hint="tools/test-servers.sh redis")

    def command(self):
        return [
            self.program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "",
            "--appendonly", "yes", *self.options,
        ]  # fmt: skip

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def client(self):
        """A client beside velo; it sees bytes."""
        return redis.Redis(port=self.port, protocol=2)

    def probe(self):
        with self.client() as client:
            client.ping()
