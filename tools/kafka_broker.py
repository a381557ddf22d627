"""Runs a Kafka broker for tests and examples: one node of Apache Kafka, on the machine's JDK.

    python tools/kafka_broker.py install           # jars from Maven Central, into the cache folder
    python tools/kafka_broker.py run --port 9092   # until Ctrl-C; its data is in --folder

The cache folder is `${XDG_CACHE_HOME:-~/.cache}/velo-test-servers`. `install` needs Maven and a JDK
of version 17 or later, and `run` needs the JDK alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

KAFKA = "4.3.1"
SLF4J = "1.7.36"
STARTS = 120  # seconds that a start may take

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>velo</groupId><artifactId>kafka-broker</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{KAFKA}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>{SLF4J}</version>
    </dependency>
  </dependencies>
</project>
"""

# One node holds every internal topic, so none of them can have a replica. Members of a group are
# not waited for, and the log cleaner's buffer fits into a small heap.
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=\
PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=8388608
"""


def cache() -> Path:
    """Where the jars are, for this version of Kafka."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "velo-test-servers" / f"kafka-{KAFKA}"


def installed() -> bool:
    """Whether `install` has run to its end."""
    return (cache() / "installed").exists()


def java(main: str, *arguments: str, flags: tuple[str, ...] = ()) -> list[str]:
    """Give the command that runs a class of Kafka, with a small heap and a quick start."""
    # The class archive is valid for exactly this list of jars in this order.
    jars = ":".join(map(str, sorted((cache() / "jars").glob("*.jar"))))
    if (archive := cache() / "classes.jsa").exists():
        flags += (f"-XX:SharedArchiveFile={archive}",)
    return [
        "java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xlog:disable",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", *flags, "-cp", jars, main, *arguments,
    ]  # fmt: skip


def install() -> None:
    """Fetch the jars, and archive the classes that a start loads: that halves the next starts."""
    if installed():
        return
    for program in ("mvn", "java"):
        if shutil.which(program) is None:
            raise SystemExit(f"kafka_broker: `{program}` is not installed")
    shutil.rmtree(cache(), ignore_errors=True)
    cache().mkdir(parents=True)
    (cache() / "pom.xml").write_text(POM)
    subprocess.run(
        ["mvn", "-q", "-B", "-f", str(cache() / "pom.xml"), "dependency:copy-dependencies",
         "-DincludeScope=runtime", f"-DoutputDirectory={cache() / 'jars'}"],
        check=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        properties = configure(Path(folder), port)
        archive = (f"-XX:ArchiveClassesAtExit={cache() / 'classes.jsa'}",)
        with subprocess.Popen(java("kafka.Kafka", str(properties), flags=archive)) as broker:
            _wait_for(port, broker)
            broker.send_signal(signal.SIGTERM)
            broker.wait()
    (cache() / "installed").touch()


def configure(folder: Path, port: int, more: str = "", controller: int | None = None) -> Path:
    """Write the properties of a broker in this folder, and format its storage if it has none."""
    data = folder / "data"
    properties = folder / "server.properties"
    if not properties.exists():
        while controller is None or str(controller) in f"{port} {more}":
            controller = _free_port()  # nothing listens yet on those that were chosen before
        properties.write_text(
            f"{PROPERTIES}log.dirs={data}\n"
            f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n"
            f"{more.replace('{controller}', str(controller))}\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\n"
        )
    if not (data / "meta.properties").exists():
        name = bytearray(uuid.uuid4().bytes)
        name[0] &= 0x7F  # an id that begins with `-` is taken for an option
        cluster = urlsafe_b64encode(name).decode().rstrip("=")
        subprocess.run(
            java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)),
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return properties


def run(folder: Path, port: int, more: str = "", controller: int | None = None) -> None:
    """Become the broker."""
    if not installed():
        raise SystemExit("kafka_broker: run `python tools/kafka_broker.py install` first")
    folder.mkdir(parents=True, exist_ok=True)
    properties = configure(folder, port, more, controller)
    command = java("kafka.Kafka", str(properties))
    os.execvp(command[0], command)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, broker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if broker.poll() is not None:
                raise SystemExit("kafka_broker: the broker does not start") from None
            if time.monotonic() > deadline:
                broker.kill()
                raise SystemExit(
                    f"kafka_broker: the broker does not listen on port {port} after {STARTS} s"
                ) from None
            time.sleep(0.1)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="fetch the broker into the cache folder")
    start = commands.add_parser("run", help="run a broker on 127.0.0.1")
    start.add_argument("--port", type=int, default=9092)
    start.add_argument("--controller", type=int, help="the port of its controller; a free one")
    start.add_argument("--folder", type=Path, help="its data; a temporary folder by default")
    start.add_argument("--properties", type=Path, help="a file of more broker properties")
    given = parser.parse_args()
    if given.command == "install":
        install()
        return
    folder = given.folder or Path(tempfile.gettempdir()) / f"kafka-{given.port}"
    more = given.properties.read_text() if given.properties else ""
    run(folder, given.port, more, given.controller)


if __name__ == "__main__":
    main()
