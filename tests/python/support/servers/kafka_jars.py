"""The jars of Kafka, which `tools/kafka_broker.py` fetches and runs."""

import subprocess
import sys

from helpers import ROOT
from servers.server import absent

__all__ = ["BROKER", "need_kafka"]

BROKER = ROOT / "tools" / "kafka_broker.py"


def need_kafka():
    """Skip the test where the jars are not there; see `absent`."""
    check = "import kafka_broker as b; raise SystemExit(not b.installed())"
    if subprocess.run([sys.executable, "-c", check], cwd=BROKER.parent).returncode:
        absent("Kafka is not installed: tools/test-servers.sh kafka")
