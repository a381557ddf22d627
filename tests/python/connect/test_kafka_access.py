"""Kafka, with a real broker: users, rights, TLS, and URLs."""

import logging
from urllib.parse import urlsplit

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from kafka_peer import FAST, everything, failure, one_partition  # noqa: F401

from helpers import until_sync
from member import Member
from servers.kafka import USERS
from velo import connect
from velo.connect._kafka import of_url
from velo.connect.errors import AuthenticationFailed, PermissionDenied, Unreachable


class TestAccess:
    def settings(self, **settings):
        return {"user": "alice", "password": USERS["alice"], "config": FAST, **settings}

    def allow(self, kafka, kind, name, operation):
        rule = AclBinding(
            kind, name, ResourcePatternType.LITERAL, "User:alice", "*", operation,
            AclPermissionType.ALLOW,
        )  # fmt: skip
        for done in kafka.admin.create_acls([rule]).values():
            done.result(30)
        # It is stored; the broker itself learns of it a moment later.
        like = AclBindingFilter(
            kind, name, ResourcePatternType.LITERAL, "User:alice", "*", operation,
            AclPermissionType.ALLOW,
        )  # fmt: skip
        until_sync(lambda: kafka.admin.describe_acls(like).result(30))

    async def test_a_wrong_password_is_refused_and_shown_nowhere(self, peer, caplog):
        caplog.set_level(logging.DEBUG)
        secret = "correct-horse-hunter2"
        endpoints = [
            connect.kafka(
                peer.server.sasl_address, peer.topic, group=group,
                **self.settings(password=secret, config={**FAST, "debug": "security"}),
            )
            for group in (None, "g")
        ]  # fmt: skip
        for endpoint in endpoints:
            error = await failure(endpoint)
            assert type(error) is AuthenticationFailed
            assert peer.server.sasl_address in str(error)
            assert secret not in f"{error!r} {endpoint!r} {endpoint.name} {vars(endpoint)}"
            with pytest.raises(AuthenticationFailed):
                await endpoint.write([("k", 1)])
            await endpoint.close()
        assert secret not in caplog.text

    async def test_a_password_in_a_file_or_the_environment(self, peer, tmp_path, monkeypatch):
        await peer.produce([b"1"])
        (tmp_path / "password").write_text(USERS["root"] + "\n")
        monkeypatch.setenv("KAFKA_PASSWORD", USERS["root"])
        for password_file in (str(tmp_path / "password"), None):
            source = connect.kafka(
                peer.server.sasl_address, peer.topic, until="end", user="root",
                password_file=password_file,
            )  # fmt: skip
            assert len(await everything(source)) == 1

    async def test_what_the_user_may_not_do_is_named(self, peer):
        address, topic, group = peer.server.sasl_address, peer.topic, peer.group
        await peer.produce([b"1"])
        error = await failure(connect.kafka(address, topic, **self.settings()))
        assert type(error) is PermissionDenied
        assert topic in str(error)
        sink = connect.kafka(address, topic, **self.settings())
        with pytest.raises(PermissionDenied, match=topic):
            await sink.write([("k", 1)])
        await sink.close()
        self.allow(peer.server, ResourceType.TOPIC, topic, AclOperation.READ)
        source = connect.kafka(address, topic, until="end", **self.settings())
        assert len(await everything(source)) == 1
        error = await failure(connect.kafka(address, topic, group=group, **self.settings()))
        assert type(error) is PermissionDenied
        self.allow(peer.server, ResourceType.GROUP, group, AclOperation.READ)
        source = connect.kafka(address, topic, group=group, until="end", **self.settings())
        assert len(await everything(source)) == 1

    async def test_without_a_rule_for_the_group_beside_its_own_a_checkpoint_is_read_all_the_same(
        self, peer, caplog
    ):
        caplog.set_level(logging.INFO)
        await peer.produce([b"1"])
        self.allow(peer.server, ResourceType.TOPIC, peer.topic, AclOperation.READ)
        self.allow(peer.server, ResourceType.GROUP, peer.group, AclOperation.READ)
        source = connect.kafka(
            peer.server.sasl_address, peer.topic, group=peer.group, **self.settings()
        )
        source.seek({})
        member = Member(source)
        await member.until(lambda: "not known whether another program" in caplog.text)
        await member.read(1)
        await member.commit()
        await member.close()

    async def test_tls_with_a_certificate_that_is_trusted_or_not(self, peer):
        address, ca = peer.server.tls_address, str(peer.server.certificate)
        sink = connect.kafka(address, peer.topic, tls_ca=ca)
        await sink.write([("k", 1)])
        await sink.flush()
        await sink.close()
        assert (
            len(await everything(connect.kafka(address, peer.topic, until="end", tls_ca=ca))) == 1
        )
        for patience in (1, 5, 25):  # one that gives up before the handshake has no reason to name
            source = connect.kafka(address, peer.topic, tls=True, connect_timeout=patience)
            error = await failure(source)
            assert type(error) is Unreachable
            if "certificate" in str(error):
                break
        assert "certificate" in str(error)
        error = await failure(connect.kafka(address, peer.topic, connect_timeout=1))
        assert type(error) is Unreachable


class TestUrl:
    def endpoint(self, url):
        settings = dict(pair.split("=") for pair in urlsplit(url).query.split("&") if pair)
        return of_url(urlsplit(url), settings)

    async def test_it_reads_and_writes(self, peer):
        await peer.produce([b"1"], key="k")
        url = f"kafka://{peer.server.address}/{peer.topic}"
        source = self.endpoint(f"{url}?until=end&decode_key=text&start=earliest&group={peer.group}")
        (record,) = await everything(source)
        assert (record.key, record.value) == ("k", 1)
        sink = self.endpoint(f"{url}?encode=text&config.linger.ms=0")
        await sink.write([("k", "two")])
        await sink.flush()
        await sink.close()
        assert await peer.written(2) == [b"1", b"two"]

    async def test_several_servers_and_a_user(self):
        endpoint = self.endpoint("kafka://alice:hunter2@a:9092,b:9093/x,y?tls=true")
        assert (endpoint.servers, endpoint.name) == ("a:9092,b:9093", "kafka x,y")
        assert "hunter2" not in repr(endpoint)

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("kafka://a", "name the topic"),
            ("kafka://a/t?grupo=x", "no setting `grupo`.*group"),
            ("kafka://a/t?tls=perhaps", "setting `tls`"),
        ],
    )
    def test_urls_that_do_not_fit(self, url, why):
        with pytest.raises(ValueError, match=why):
            self.endpoint(url)
