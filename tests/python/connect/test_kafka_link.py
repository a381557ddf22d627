"""Kafka without a broker: outages, silence, and leaders that change."""

import time
import types

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from helpers import HANG
from velo import connect
from velo.connect._kafka.bound import Bound
from velo.connect._kafka.link import Link
from velo.connect._kafka.lookout import Lookout
from velo.connect.errors import NoSuchTopic, Unreachable


class TestSilence:
    """A network that is cut ends no connection, and the client waits for those that it has."""

    @pytest.fixture
    def link(self):
        link = Link("kafka in", "localhost:1", 1.0)
        link.answered()
        link.on_error(KafkaError(KafkaError._TRANSPORT, "1 request timed out"))
        return link

    def asked(self, link, answer):
        class Client:
            def list_topics(self, _topic, timeout):
                if not answer:
                    raise KafkaException(KafkaError(KafkaError._TRANSPORT))

        reading, nothing = connect.kafka("localhost:1", "in")._reading, types.SimpleNamespace()
        Lookout(reading, link, nothing).look(Client(), types.SimpleNamespace(names=()), None)

    def test_when_one_broker_was_lost_and_none_answers_all_are_away(self, link, caplog):
        assert link.doubtful
        assert not link.down
        self.asked(link, answer=False)
        assert link.down
        assert "lost the server localhost:1: 1 request timed out" in caplog.text

    def test_when_another_one_answers_nothing_is_lost(self, link):
        self.asked(link, answer=True)
        assert not link.doubtful
        assert not link.down


class TestStandstill:
    """A source with an end whose records do not come says once for which it waits."""

    @pytest.fixture
    def bound(self):
        bound = object.__new__(Bound)
        bound._reached = {("in", 0): 7, ("in", 1): 2}
        bound._ends = {("in", 0): 7, ("in", 1): 5, ("in", 2): 3}
        return bound

    def lookout(self, held=()):
        link = Link("kafka in", "localhost:1", 1.0)
        link.answered()
        reading = connect.kafka("localhost:1", "in", group="g")._reading
        return Lookout(reading, link, types.SimpleNamespace(held=lambda: held))

    def look(self, lookout, bound, silent, **assignment):
        lookout._look_at, lookout._heard_at = 0.0, time.monotonic() - silent
        assignment = {"names": set(bound._ends), "waiting": set(), "lag": dict} | assignment
        lookout.look(None, types.SimpleNamespace(**assignment), bound)

    def test_it_names_what_is_left(self, bound, caplog):
        lookout = self.lookout()
        self.look(lookout, bound, 31.0)
        self.look(lookout, bound, 32.0)
        assert caplog.messages == [
            "kafka in: has read nothing for 30 s, and goes on waiting for ('in', 1) from 2 to 5, "
            "('in', 2) from 0 to 3"
        ]

    def test_a_member_without_partitions_says_so(self, bound, caplog):
        self.look(self.lookout(), bound, 31.0, names=set())
        assert caplog.messages == [
            "kafka in: has read nothing for 30 s, and goes on waiting for partitions: group 'g' "
            "gives this member none, and has not committed all records before the end"
        ]

    def test_it_says_nothing_before_nor_while_records_wait_to_be_handled(self, bound, caplog):
        self.look(self.lookout(), bound, 20.0)
        self.look(self.lookout(held={("in", 0)}), bound, 31.0)
        self.look(self.lookout(), bound, 31.0, names=set(), waiting={("in", 0)})
        assert caplog.messages == []


class TestLeaders:
    """While a partition changes its leader, brokers and client disagree about that for a moment."""

    @pytest.mark.parametrize(
        "code",
        [
            KafkaError.UNKNOWN_LEADER_EPOCH,
            KafkaError.FENCED_LEADER_EPOCH,
            KafkaError.OFFSET_NOT_AVAILABLE,
            KafkaError._UNKNOWN_PARTITION,
            KafkaError._DESTROY_BROKER,
        ],
    )
    def test_what_is_asked_of_it_is_asked_again(self, code):
        link = Link("kafka in", "localhost:1", 1.0)
        refused = types.SimpleNamespace(error=KafkaError(code))
        answers = iter([KafkaException(KafkaError(code)), [refused], [TopicPartition("in", 0, 7)]])

        def call():
            if isinstance(answer := next(answers), KafkaException):
                raise answer
            return answer

        assert [place.offset for place in link.ask(call, lambda: False)] == [7]

    def test_a_topic_that_is_not_there_is_not(self):
        link = Link("kafka in", "localhost:1", 1.0)

        def call():
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))

        with pytest.raises(KafkaException):
            link.ask(call, lambda: False)

    def asked(self, monkeypatch, code, connect_timeout):
        """Ask for the metadata of a topic that has an error the first three times."""
        monkeypatch.setattr("velo.connect._kafka.link._CREATED", 0.0)
        link = Link("kafka in", "localhost:1", connect_timeout)
        errors = iter([KafkaError(code)] * 3)

        class Client:
            def list_topics(self, topic, timeout):
                described = types.SimpleNamespace(error=next(errors, None), partitions={0: None})
                return types.SimpleNamespace(topics={topic: described})

        return link.metadata(Client(), "in", lambda: False).topics["in"]

    def test_a_topic_without_a_leader_is_waited_for_as_a_broker_is(self, monkeypatch):
        code = KafkaError.LEADER_NOT_AVAILABLE
        assert self.asked(monkeypatch, code, HANG).partitions == {0: None}
        with pytest.raises(Unreachable):
            self.asked(monkeypatch, code, 0.0)

    def test_one_that_is_not_there_is_waited_for_no_longer_than_a_new_one(self, monkeypatch):
        with pytest.raises(NoSuchTopic):
            self.asked(monkeypatch, KafkaError.UNKNOWN_TOPIC_OR_PART, HANG)
