"""PostgreSQL with a database `velo`, for passwords over TCP, and with TLS."""

import atexit
import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile

import psutil

from helpers import alive, family, until_sync
from servers.certificates import certificate
from servers.server import Server, absent, program

HINT = "apt-get install --no-install-recommends postgresql"


class Postgres(Server):
    """`admin` may do everything, `reader` may only read; both need their passwords."""

    name = "postgres"
    admin, admin_password = "admin", "hunter1"
    user, password = "reader", "hunter2"

    def __init__(self, folder):
        # The server refuses to run as root, and another user cannot enter pytest's folders.
        self.owner = _another_user() if os.getuid() == 0 else None
        if self.owner is not None:
            folder = tempfile.mkdtemp(prefix="velo-postgres-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        super().__init__(folder)
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
        self.program = program("postgres", *found, hint=HINT)
        initdb = program("initdb", *found, hint=HINT)
        self.data = self.folder / "data"
        self.data.mkdir(0o700)
        self.certificate, key = certificate(self.folder)
        key.chmod(0o600)
        (self.folder / "password").write_text(self.admin_password)
        if self.owner is not None:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, self.owner)
        subprocess.run(
            [initdb, "-D", self.data, "-U", self.admin, "--pwfile", self.folder / "password",
             "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.started_as(),
        )  # fmt: skip
        self.settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "ssl": "on", "ssl_cert_file": self.certificate, "ssl_key_file": key,
            "max_connections": 30, "shared_buffers": "16MB", "fsync": "off",
            # In its folder, and not in /dev/shm: a killed server leaves nothing there.
            "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip

    def started_as(self):
        if self.owner is None:
            return {}
        user = pwd.getpwnam(self.owner)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def command(self):
        options = [
            part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")
        ]
        return [self.program, "-D", str(self.data), *options]

    def dsn(self, user=None, password=None, database="postgres"):
        user, password = user or self.admin, password or self.admin_password
        return f"host=127.0.0.1 port={self.port} user={user} password={password} dbname={database}"

    def probe(self):
        import psycopg

        with psycopg.connect(self.dsn(), connect_timeout=2, autocommit=True) as connection:
            connection.execute(
                f"""do $$ begin if not exists (select from pg_roles where rolname = '{self.user}')
                then create role {self.user} login password '{self.password}'; end if; end $$"""
            )

    def signal(self, number):
        # Each process that serves a connection is a session of its own.
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self.process.pid)
            for process in (server, *server.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def kill(self):
        if self.process is None:
            return
        os.kill(self.process.pid, signal.SIGSTOP)  # it starts no more processes
        processes = [self.process.pid, *family(self.process.pid)]
        super().kill()
        # The next server refuses to start while one of them is attached to the shared memory.
        until_sync(lambda: not any(map(alive, processes)))

    def stop(self):
        # To end without waiting for the connections of others.
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)
            self.process.wait(30)
            self.process = None


def _another_user():
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    absent("postgres does not run as root, and there is neither a user `postgres` nor `nobody`")
