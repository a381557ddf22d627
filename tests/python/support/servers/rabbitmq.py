"""RabbitMQ with a port open to `guest`, and one with TLS."""

import os
import subprocess
import time

from leaks import LASTING
from servers.certificates import certificate
from servers.server import Server, free_port, program
from standalone import end_with_this_thread

HINT = "apt-get install --no-install-recommends rabbitmq-server"


class RabbitMQ(Server):
    """A node of its own, with its own epmd, which is stopped with it."""

    name = "rabbitmq-server"
    user, password = "reader", "hunter2"

    def __init__(self, folder):
        super().__init__(folder)
        scripts = "/usr/lib/rabbitmq/bin"  # those of /usr/sbin change the user
        self.program = program("rabbitmq-server", scripts, hint=HINT)
        self.control = program("rabbitmqctl", scripts, hint=HINT)
        self.epmd = None
        self.epmd_port, self.distribution_port, self.tls_port = (free_port() for _ in range(3))
        self.certificate, key = certificate(self.folder)
        (self.folder / "rabbitmq.conf").write_text(
            f"""listeners.tcp.1 = 127.0.0.1:{self.port}
listeners.ssl.1 = 127.0.0.1:{self.tls_port}
ssl_options.cacertfile = {self.certificate}
ssl_options.certfile = {self.certificate}
ssl_options.keyfile = {key}
heartbeat = 10
log.console.level = warning
"""
        )
        (self.folder / "enabled_plugins").write_text("[].\n")

    def environment(self):
        folder = str(self.folder)
        return {
            **os.environ,
            "HOME": folder,  # for the cookie
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"velo{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +A 8",
        }

    def start(self):
        if self.epmd is None:
            # A node would start one that outlives it.
            self.epmd = subprocess.Popen(
                [program("epmd", hint=HINT), "-port", str(self.epmd_port)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=self.environment(), preexec_fn=end_with_this_thread,
            )  # fmt: skip
            LASTING["pids"].add(self.epmd.pid)
        return super().start()

    def command(self):
        return [self.program]

    def ctl(self, *arguments):
        """Run `rabbitmqctl`."""
        subprocess.run(
            [self.control, *arguments], env=self.environment(), check=True, capture_output=True
        )

    def sync(self):
        # The node answers that a queue is declared before that is on its disk.
        self.ctl("eval", "mnesia:sync_log().")

    def stop(self):
        super().stop()
        self.end_epmd()

    def kill(self):
        super().kill()
        # The process that was started is a shell: its child, the server, ends a little later.
        deadline = time.monotonic() + 30
        while True:
            try:
                self.probe()
            except OSError:
                return
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end_epmd(self):
        if self.epmd is not None:
            self.epmd.terminate()
            self.epmd.wait(30)
            self.epmd = None
