"""`datetime`, `date`, `time`, `timedelta`."""

import datetime as dt
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

OFFSETS = st.timedeltas(
    min_value=dt.timedelta(hours=-23, minutes=-59), max_value=dt.timedelta(hours=23, minutes=59)
)
ZONES = st.none() | st.just(dt.UTC) | st.builds(dt.timezone, OFFSETS)


def exactly(one, other):
    """Equality of times looks through zones and folds; this does not."""
    fields = lambda value: (value.replace(tzinfo=None), value.fold, repr(value.tzinfo))  # noqa: E731
    return fields(one) == fields(other) and type(one.tzinfo) is type(other.tzinfo)


@given(st.dates(), st.timedeltas())
def test_dates_and_spans(check, date, span):
    check(date)
    check(span)


@given(st.datetimes(timezones=ZONES), st.sampled_from([0, 1]))
def test_datetimes(check, value, fold):
    value = value.replace(fold=fold)
    assert exactly(value, check(value))


@given(st.times(timezones=ZONES), st.sampled_from([0, 1]))
def test_times(check, value, fold):
    value = value.replace(fold=fold)
    assert exactly(value, check(value))


@pytest.mark.parametrize("kind", [dt.date, dt.time, dt.datetime, dt.timedelta])
def test_limits(check, kind):
    for value in (kind.min, kind.max, kind.resolution):
        check(value)


def test_utc_is_the_one_utc(check):
    assert check(dt.datetime(2024, 1, 1, tzinfo=dt.UTC)).tzinfo is dt.UTC


@pytest.mark.parametrize(
    "zone",
    [
        dt.timezone(dt.timedelta(hours=2), "CEST"),
        dt.timezone(dt.timedelta(0), "Zulu"),
        dt.timezone(dt.timedelta(microseconds=1)),
    ],
)
def test_named_and_odd_offsets(check, zone):
    value = dt.datetime(2024, 6, 1, 12, tzinfo=zone)
    assert exactly(value, check(value))
    assert exactly(value, check([value])[0])
    check(zone)


def test_zoneinfo(check):
    try:
        zone = zoneinfo.ZoneInfo("Europe/Berlin")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("no time zone data")
    value = dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zone)
    received = check(value)
    assert received.tzinfo is zone
    assert received.fold == 1
    check({"at": value, "then": [value, dt.time(1, tzinfo=zone)]})


class Moment(dt.datetime):
    pass


class Day(dt.date):
    pass


def test_subclasses_are_not_their_base(check):
    check(Moment(2024, 1, 1))
    check(Day(2024, 1, 1))


def test_plain_times_are_not_pickled():
    from velo._core import dumps

    moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    assert len(dumps(moment)) == 15
