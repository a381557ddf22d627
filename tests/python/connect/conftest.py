"""The real servers: one of each for the session, started by the first test that asks for it."""

import importlib

import pytest

from servers.server import absent

_started = []


def _server(name, kind):
    """The fixture `name`: the server `kind` of the module `servers.NAME`."""

    @pytest.fixture(scope="session", name=name)
    def server(tmp_path_factory):
        try:
            module = importlib.import_module(f"servers.{name}")
        except ImportError as error:
            absent(f"a client library is not installed: {error}")
        server = getattr(module, kind)(tmp_path_factory.mktemp(name)).start()
        _started.append(server)
        yield server
        server.stop()

    return server


kafka = _server("kafka", "Kafka")
mosquitto = _server("mosquitto", "Mosquitto")
redis = _server("redis", "Redis")
nats = _server("nats", "Nats")
rabbitmq = _server("rabbitmq", "RabbitMQ")
postgres = _server("postgres", "Postgres")
moto = _server("moto", "Moto")


@pytest.fixture(scope="module", autouse=True)
def _without_clients(_leaves_nothing):
    """Have no client of a server outlive a module: it opens and closes connections by itself."""
    yield
    for server in _started:
        server.disconnect()
