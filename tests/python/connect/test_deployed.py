"""The commands that the files of `deploy/` hold, with a broker that wants a user and a password."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from helpers import HANG, ROOT
from object_stores import Bucket
from probing import Probed

pytestmark = pytest.mark.slow  # it is about programs

DEPLOY = ROOT / "deploy"
BROKERS = re.compile(r"(?:broker[-.\w]*:9092,?)+")
PAYMENTS = [10, 12, 11, 90]


class Deployed:
    """A command of a manifest, which runs here.

    Args:
        args: The arguments of `velo`.
        environment: The variables that the manifest sets.

    """

    def __init__(self, kafka, args, environment):
        self._kafka = kafka
        self._in, self._out = kafka.topic(3), kafka.topic(1)
        places = {"/payments": f"/{self._in}", "/alerts": f"/{self._out}"}
        args = [BROKERS.sub(kafka.sasl_address, arg) for arg in args]
        for name, topic in places.items():
            args = [arg.replace(name, topic) for arg in args]
        args = [re.sub(r"^[\d.]+:9464$", "127.0.0.1:0", arg) for arg in args]
        process = subprocess.Popen(
            [sys.executable, "-m", "velo", *args],
            cwd=DEPLOY / "app", env={**os.environ, **environment},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.process = process
        self.probe = Probed(process)

    def alert(self):
        """What the payments of a card lead to."""
        values = [json.dumps({"card": "A", "amount": amount}).encode() for amount in PAYMENTS]
        self._kafka.produce(self._in, values, "A")
        (message,) = self._kafka.read(self._out, 1)
        return json.loads(message.value())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        _, told = self.process.communicate(timeout=HANG)
        return self.process.returncode, told.decode()


@pytest.fixture
def deployed(kafka):
    started = []

    def start(args, environment):
        started.append(Deployed(kafka, args, environment))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        each.process.stderr.close()
    kafka.disconnect()


SECRET = {"KAFKA_USER": "root", "KAFKA_PASSWORD": "hunter2-root"}


def test_the_command_of_the_pods(deployed, moto, tmp_path, monkeypatch):
    pods = yaml.safe_load((DEPLOY / "kubernetes" / "statefulset.yaml").read_text())
    (container,) = pods["spec"]["template"]["spec"]["containers"]
    store = Bucket(moto.port, tmp_path, monkeypatch)
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 4)
    environment = {
        **SECRET,
        "POD_NAME": "fraud-0",
        "VELO_CHECKPOINT_KEY_FILE": str(key),
        "VELO_CHECKPOINT_CACHE": str(tmp_path / "cache"),
    }
    assert {each["name"] for each in container["env"]} == set(environment)
    args = [re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], a) for a in container["args"]]
    place = args.index("--checkpoint") + 1
    assert args[place].startswith("s3://")
    args[place] = f"{store.url}?endpoint={store.endpoint}&region=us-east-1"
    run = deployed(args, environment)
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        run.probe.until(container[name]["httpGet"]["path"])
    assert run.alert() == {"card": "A", "amount": 90, "usual": 11}
    run.probe.until("/ready")
    code, told = run.stop()
    assert code == 128 + signal.SIGTERM
    assert "hunter2" not in told


def settings(path):
    """The lines `NAME=VALUE` of a unit, or of a file of environment; each name once."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.match(r"\w+=", line)]
    return dict(line.split("=", 1) for line in lines)


def test_the_command_of_the_service(deployed, tmp_path):
    unit = settings(DEPLOY / "systemd" / "velo@.service")
    file = settings(DEPLOY / "systemd" / "fraud.env")
    environment = {**SECRET, "STATE_DIRECTORY": str(tmp_path)}
    assert set(file) == {"ARGS", "KAFKA_PASSWORD"}
    words = shlex.split(file["ARGS"].strip('"'))
    args = []
    for word in unit["ExecStart"].split()[1:]:
        whole = re.sub(r"\$\{(\w+)\}", lambda m: environment[m[1]], word)
        args += words if word == "$ARGS" else [whole]
    args = [arg.replace("//fraud@", "//root@") for arg in args]
    run = deployed(args, environment)
    run.probe.until("/ready")
    assert run.alert() == {"card": "A", "amount": 90, "usual": 11}
    code, told = run.stop()
    assert code in map(int, unit["SuccessExitStatus"].split())
    assert "hunter2" not in told
    assert (tmp_path / "checkpoint").is_dir()
    assert float(unit["TimeoutStopSec"]) > float(args[args.index("--drain") + 1])
