"""A connector without its package names the extra that installs it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "extra", "package"),
    [
        ("kafka", "kafka", "confluent_kafka"),
        ("schema_registry", "schema-registry", "confluent_kafka"),
        ("nats", "nats", "nats"),
        ("redis", "redis", "redis"),
        ("mqtt", "mqtt", "paho"),
        ("rabbitmq", "rabbitmq", "aio_pika"),
        ("postgres", "postgres", "psycopg"),
        ("http", "http", "httpx"),
        ("sse", "http", "httpx"),
        ("websocket", "websocket", "websockets"),
        ("objects", "objects", "obstore"),
    ],
)
def test_a_missing_package_is_named(name, extra, package):
    program = (
        f"import sys; sys.modules[{package!r}] = None\nfrom velo import connect; connect.{name}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = f"ImportError: `connect.{name}` needs a package: pip install 'velo-stream[{extra}]'"
    assert done.stderr.splitlines()[-1] == said
