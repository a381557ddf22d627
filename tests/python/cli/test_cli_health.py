"""Whether a run is ready and alive: the decision, with made-up samples and times."""

import pytest

from velo._diagnostics.waits import Wait
from velo.cli.health import Part, Sample, extended, why_not_live, why_not_ready

READY, LIVE = 60.0, 300.0


def history(samples):
    found = None
    for sample in samples:
        found = extended(found, sample)
    return found


def seconds(count, make, start=0):
    """Samples of so many seconds, one in each; `make` gives what is in the sample of a second."""
    return [Sample(float(at), **make(at)) for at in range(start, start + count + 1)]


def why(samples, judge=why_not_ready, patience=READY, later=0.0):
    return judge(history(samples), samples[-1].at + later, patience)


def both(samples):
    """The reasons why it is not ready, and not alive after longer."""
    return why(samples), why(samples, why_not_live, LIVE)


class TestNotYet:
    def test_a_run_that_has_not_begun_lives_and_is_not_ready(self):
        assert "does not read yet" in why_not_ready(None, 5.0, READY)[0]
        assert why_not_live(None, 5.0, LIVE) == []

    def test_a_run_that_opens_its_checkpoint_is_not_ready(self):
        ready, live = both(seconds(400, lambda at: {"reading": False}))
        assert "does not read yet" in ready[0]
        assert live == []

    def test_a_run_that_stops_is_not_ready_and_lives(self):
        stopping = {"stopping": True, "reading": False, "pending": 4, "moved": 1}
        ready, live = both(seconds(400, lambda at: stopping))
        assert "is stopping" in ready[0]
        assert live == []


class TestAtWork:
    def test_nothing_to_do_is_well(self):
        assert both(seconds(1000, lambda at: {"moved": 7})) == ([], [])

    def test_work_that_goes_on_is_well_however_long_the_queue(self):
        def busy(at):
            parts = {"in/0": Part(100 * at, 100 * at - 50, at % 2 == 0, lag=10 * at)}
            return {"pending": 50, "moved": at, "parts": parts}

        assert both(seconds(1000, busy)) == ([], [])

    def test_a_lag_that_stays_is_nothing_to_read(self):
        # The end of a transaction has a position, and is no record.
        parts = {"in/0": Part(10, 10, lag=1)}
        assert both(seconds(1000, lambda at: {"parts": parts})) == ([], [])

    def test_records_that_come_after_a_long_pause_are_not_late(self):
        def quiet(at):
            return {"parts": {"in/0": Part(10, 10, lag=1 if at < 1000 else 5)}}

        assert both(seconds(1001, quiet)) == ([], [])

    def test_events_that_come_after_a_long_pause_are_not_late(self):
        def quiet(at):
            return {"pending": int(at >= 1000), "moved": at // 1000}

        assert both(seconds(1001, quiet)) == ([], [])


class TestStandstill:
    def test_nothing_is_consumed_though_the_lag_grows(self):
        samples = seconds(400, lambda at: {"parts": {"in/0": Part(10, 10, lag=3 + at)}})
        assert why(samples[:61]) == []
        assert why(samples[:62]) == [
            "nothing of in/0 was consumed for 61 s, though its lag has grown from 3 to 64"
        ]
        assert why(samples[:290], why_not_live, LIVE) == []
        assert "in/0 was consumed for 400 s" in why(samples, why_not_live, LIVE)[0]

    def test_it_is_over_with_the_first_record(self):
        samples = seconds(100, lambda at: {"parts": {"in/0": Part(10, 10, lag=3 + at)}})
        assert why(samples)
        samples += seconds(0, lambda at: {"parts": {"in/0": Part(11, 10, lag=104)}}, 101)
        assert why(samples) == []

    def test_of_several_inputs_the_one_is_named_that_stands_still(self):
        def one_of_three(at):
            parts = {
                "orders/0": Part(at, at, lag=at),
                "orders/1": Part(at, at, lag=0),
                "payments/0": Part(5, 5, lag=at),
            }
            return {"parts": parts, "moved": at}

        (reason,) = why(seconds(100, one_of_three))
        assert "nothing of payments/0" in reason

    def test_a_partition_that_another_program_has_is_left_alone(self):
        def given_away(at):
            return {"parts": {"in/0": Part(10, 10, lag=at)} if at < 50 or at > 90 else {}}

        assert why(seconds(100, given_away)) == []

    def test_a_partition_that_is_full_and_goes_no_further_is_named(self):
        # Kafka says no more how the lag of a partition grows that is not read.
        def full(at):
            parts = {
                "in/0": Part(200, 100, True, lag=9),
                "in/1": Part(at, at, lag=0),
            }
            return {"parts": parts, "pending": 100, "moved": at}

        (reason,) = why(seconds(100, full))
        assert "nothing of in/0 was consumed for 100 s: 100 records" in reason

    def test_events_that_nobody_handles(self):
        samples = seconds(400, lambda at: {"pending": 17, "moved": 4})
        told = "17 events were read, and none was handled for"
        assert both(samples[:61]) == ([], [])
        assert both(samples) == ([f"{told} 400 s"], [f"{told} 400 s"])
        assert why(samples[:62]) == [f"{told} 61 s"]

    def test_time_in_which_the_process_was_frozen_does_not_count(self):
        stuck = {"pending": 17, "moved": 4}
        samples = [*seconds(10, lambda at: stuck), *seconds(10, lambda at: stuck, 10_000)]
        assert both(samples) == ([], [])


class TestWaits:
    def test_a_server_that_is_away_is_told_at_once_and_a_restart_would_not_help(self):
        lost = Wait("kafka in", "connection refused", "h:9092")
        stuck = {"pending": 17, "moved": 4, "waits": [lost]}
        samples = seconds(400, lambda at: stuck if at else {"pending": 17, "moved": 4})
        assert why(samples[:2]) == ["kafka in: no connection to h:9092 for 0 s: connection refused"]
        ready, live = both(samples)
        assert "for 399 s" in ready[0]
        assert live == []

    def test_when_the_server_is_back_the_run_has_time_to_go_on(self):
        lost = Wait("kafka in", "connection refused", "h:9092")
        parts = {"in/0": Part(9, 4, True, lag=7)}

        def outage(at):
            waits = [lost] if 100 <= at < 900 else []
            return {"pending": 5, "moved": at < 100 and at, "parts": parts, "waits": waits}

        samples = seconds(1300, outage)
        assert why(samples[:950]) == []
        assert len(why(samples[:970])) == 1
        assert why(samples[:1200], why_not_live, LIVE) == []
        assert len(why(samples, why_not_live, LIVE)) == 1

    @pytest.mark.parametrize("of", ["kafka out", "checkpoint kept"])
    def test_results_or_states_that_are_not_durable_for_long(self, of):
        wait = Wait(of, "`flush`")
        samples = seconds(400, lambda at: {"pending": 3, "moved": 1, "waits": [wait]})
        assert why(samples[:61]) == []
        ready, live = both(samples)
        assert ready == [f"`flush` of `{of}` has not returned for 400 s"]
        assert live == []

    def test_many_calls_one_after_another_are_no_long_one(self):
        samples = seconds(400, lambda at: {"moved": at, "waits": [Wait("out", "`flush`")]})
        assert both(samples) == ([], [])


class TestEventLoop:
    def test_a_loop_that_is_held_is_told(self):
        samples = seconds(10, lambda at: {})
        assert why(samples, later=60.0) == []
        assert "event loop has not run for 61 s" in why(samples, later=61.0)[0]
        assert why(samples, why_not_live, LIVE, later=300.0) == []
        assert "event loop has not run" in why(samples, why_not_live, LIVE, later=301.0)[0]

    def test_a_run_that_stops_is_not_started_anew_for_that(self):
        samples = seconds(10, lambda at: {"stopping": True})
        assert why(samples, why_not_live, LIVE, later=1000.0) == []
