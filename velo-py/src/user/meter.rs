//! The figures of one stream: the numbers of events and results, and the latency of events.

use std::sync::LazyLock;

use hdrhistogram::Histogram;
use velo_shm::ticks;

/// While one event is being timed, the meter looks for its end once per this many results.
const LOOK_EVERY: u64 = 16;

/// The least time, in nanoseconds, between two publications of a stream's percentiles for `velo top`.
/// They are published earlier when the number of timed events has doubled.
const PUBLISH_EVERY: u128 = 100_000_000;

/// The meter looks for the end of an event that was accepted this many nanoseconds ago when the next
/// one is sent.
const OVERDUE: u64 = 1_000_000;

/// One significant digit: 6 % steps, about a KiB for latencies up to a second.
const DIGITS: u8 = 1;

/// Longer latencies count as this one, in nanoseconds.
const HOUR: u64 = 3_600_000_000_000;

/// Whether streams time their events. `VELO_METRICS=0` turns that off, to measure its cost.
static TIMED: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("VELO_METRICS").is_none_or(|value| value != "0"));

/// Counts of one stream, kept by the user's half.
///
/// Latency is sampled: one event at a time is followed from the moment it was accepted until the
/// user's half learns that the function is done with it.
pub struct Meter {
    sent: u64,
    received: u64,
    /// A result was taken since the last event was accepted.
    answered: bool,
    /// The followed event: the number of handled events once it is handled, and the time of its
    /// acceptance.
    followed: Option<(u64, u64)>,
    /// When the followed event was last seen not to be handled though all events were answered.
    answered_at: Option<u64>,
    /// Whether any event is followed.
    timed: bool,
    latencies: Option<Box<Histogram<u32>>>,
    /// The time of the last publication of percentiles, in ticks.
    published: u64,
    /// Whether percentiles are published.
    unpublished: bool,
    opened: u64,
    ended: Option<u64>,
}

impl Default for Meter {
    fn default() -> Self {
        Meter {
            sent: 0,
            received: 0,
            answered: false,
            followed: None,
            answered_at: None,
            timed: *TIMED,
            latencies: None,
            published: 0,
            unpublished: false,
            opened: ticks::now(),
            ended: None,
        }
    }
}

/// Percentiles of latency.
pub struct Figures {
    /// Microseconds; None before the first event was handled.
    pub p50: Option<f64>,
    /// As `p50`.
    pub p95: Option<f64>,
    /// As `p50`.
    pub p99: Option<f64>,
}

impl Figures {
    /// The percentiles of the measured latencies.
    pub fn of(latencies: Option<&Histogram<u32>>) -> Self {
        let quantile = |q: f64| latencies.map(|seen| seen.value_at_quantile(q) as f64 / 1_000.0);
        Figures {
            p50: quantile(0.50),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }
}

/// An empty histogram, which grows as needed.
pub fn no_latencies() -> Box<Histogram<u32>> {
    let mut empty = Histogram::new(DIGITS).expect("one digit is a valid precision");
    empty.auto(true);
    Box::new(empty)
}

impl Meter {
    /// `count` events were accepted just now.
    #[inline]
    pub fn sent(&mut self, count: u64, now: u64) {
        self.sent += count;
        self.answered = false;
        if self.timed && self.followed.is_none() {
            self.followed = Some((self.sent, now));
            self.answered_at = None;
        }
    }

    /// `count` of the events that were accepted will never be handled.
    pub fn dropped(&mut self, count: u64) {
        self.sent -= count.min(self.sent);
        if self.followed.is_some_and(|(event, _)| event > self.sent) {
            self.followed = None;
        }
    }

    /// `count` results were taken. True if the number of handled events is needed now.
    #[inline]
    pub fn received(&mut self, count: u64) -> bool {
        self.received += count;
        self.answered = true;
        self.followed.is_some()
            && (self.received.is_multiple_of(LOOK_EVERY) || self.received >= self.sent)
    }

    /// Whether the followed event was accepted long ago. Its end may be known by now: if events are
    /// rare, no other call looks for it before the next event.
    #[inline]
    pub fn is_overdue(&self, now: u64) -> bool {
        self.followed
            .is_some_and(|(_, accepted)| ticks::to_ns(now.saturating_sub(accepted)) > OVERDUE)
    }

    /// The function has handled this many events, the last of them at `at`, in ticks; 0 if that is
    /// unknown. Another process may have written `at`, so an impossible time is ignored.
    #[inline]
    pub fn observe(&mut self, handled: u64, at: u64, now: u64) {
        let Some((event, accepted)) = self.followed else {
            return;
        };
        if handled < event {
            if self.answered && self.received >= self.sent {
                self.answered_at = Some(now);
            }
            return;
        }
        self.followed = None;
        let end = match self.answered_at {
            // `at` is of a later event, which was accepted after this one had its result.
            Some(answered) if handled > event => answered,
            _ if (accepted..now).contains(&at) => at,
            _ => now,
        };
        let elapsed = ticks::to_ns(end.saturating_sub(accepted));
        let latencies = self.latencies.get_or_insert_with(no_latencies);
        // Latencies beyond an hour need not be told apart.
        let _ = latencies.record(elapsed.clamp(1, HOUR));
        let since = ticks::to_duration(now.saturating_sub(self.published)).as_nanos();
        if latencies.len().is_power_of_two() || since >= PUBLISH_EVERY {
            self.published = now;
            self.unpublished = true;
        }
    }

    /// The median and the 99th percentile, in nanoseconds, when they are to be published again.
    #[inline]
    pub fn unpublished(&mut self) -> Option<(u64, u64)> {
        if !std::mem::take(&mut self.unpublished) {
            return None;
        }
        let seen = self.latencies.as_deref()?;
        Some((seen.value_at_quantile(0.50), seen.value_at_quantile(0.99)))
    }

    /// The stream has ended.
    pub fn ended(&mut self) {
        self.ended.get_or_insert_with(ticks::now);
    }

    /// Whether a result was taken since the last event was accepted.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// The number of results that were taken.
    pub fn results(&self) -> u64 {
        self.received
    }

    /// The latencies of events, in nanoseconds; None before the first event was handled.
    pub fn latencies(&self) -> Option<&Histogram<u32>> {
        self.latencies.as_deref()
    }

    /// Seconds that the stream was, or is, open.
    pub fn duration(&self) -> f64 {
        let until = self.ended.unwrap_or_else(ticks::now);
        ticks::to_duration(until.saturating_sub(self.opened)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only latency that was measured, in ticks; figures have one digit.
    fn is_about(meter: &Meter, expected: u64) -> bool {
        let seen = meter.latencies().unwrap();
        let expected = ticks::to_ns(expected);
        seen.len() == 1 && seen.max().abs_diff(expected) <= expected / 10
    }

    /// A meter whose first event was accepted and answered.
    fn answered(accepted: u64) -> Meter {
        let mut meter = Meter::default();
        meter.sent(1, accepted);
        assert!(meter.received(1));
        meter
    }

    const BEGIN: u64 = 1 << 40;
    const STEP: u64 = 1 << 30;

    #[test]
    fn an_event_takes_until_it_was_released() {
        let mut meter = answered(BEGIN);
        meter.observe(0, 0, BEGIN + STEP);
        meter.observe(1, BEGIN + 2 * STEP, BEGIN + 3 * STEP);
        assert!(is_about(&meter, 2 * STEP));
    }

    #[test]
    fn an_event_whose_release_is_seen_with_the_next_takes_until_it_was_answered() {
        let mut meter = answered(BEGIN);
        meter.observe(0, 0, BEGIN + STEP);
        meter.sent(1, BEGIN + STEP);
        assert!(meter.received(1));
        meter.observe(2, BEGIN + 2 * STEP, BEGIN + 2 * STEP);
        assert!(is_about(&meter, STEP));
    }

    #[test]
    fn an_event_that_was_not_answered_takes_until_a_later_one_was_released() {
        let mut meter = Meter::default();
        meter.sent(1, BEGIN);
        meter.sent(1, BEGIN);
        meter.observe(0, 0, BEGIN + STEP);
        meter.observe(2, BEGIN + 2 * STEP, BEGIN + 3 * STEP);
        assert!(is_about(&meter, 2 * STEP));
    }

    #[test]
    fn an_impossible_time_of_release_is_ignored() {
        for at in [0, BEGIN - 1, BEGIN + 2 * STEP] {
            let mut meter = answered(BEGIN);
            meter.observe(1, at, BEGIN + STEP);
            assert!(is_about(&meter, STEP));
        }
    }
}
