"""Mosquitto with three listeners: open, with a password, and with TLS."""

import os
import subprocess

from servers.certificates import certificate
from servers.server import Server, free_port, program

HINT = "apt-get install --no-install-recommends mosquitto"


class Mosquitto(Server):
    """`port` is open to all; `login_port` to `reader` alone; `tls_port` is encrypted.

    The server keeps sessions when it is stopped, and when it is killed.
    """

    name = "mosquitto"
    user, password = "reader", "hunter2"

    def __init__(self, folder):
        super().__init__(folder)
        self.program = program("mosquitto", hint=HINT)
        self.login_port, self.tls_port = free_port(), free_port()
        self.certificate, key = certificate(self.folder)
        passwords = self.folder / "passwords"
        passwords.touch(0o600)
        subprocess.run(
            [program("mosquitto_passwd", hint=HINT), "-b", passwords, self.user, self.password],
            check=True, capture_output=True,
        )  # fmt: skip
        (self.folder / "acl").write_text(f"user {self.user}\ntopic read #\ntopic write allowed\n")
        self.configuration = self.folder / "mosquitto.conf"
        self.configuration.write_text(
            # A server that root starts would become the user `mosquitto`, which owns nothing here.
            ("user root\n" if os.getuid() == 0 else "")
            + f"""per_listener_settings true
persistence true
persistence_location {self.folder}/
autosave_on_changes true
autosave_interval 1
max_queued_messages 0
listener {self.port} 127.0.0.1
allow_anonymous true
listener {self.login_port} 127.0.0.1
allow_anonymous false
password_file {passwords}
acl_file {self.folder / "acl"}
listener {self.tls_port} 127.0.0.1
allow_anonymous true
certfile {self.certificate}
keyfile {key}
"""
        )

    def command(self):
        return [self.program, "-c", str(self.configuration)]
