//! Time that is cheap to read, for measuring durations. Not a clock: it has no
//! beginning that means anything. Two processes' ticks are compared only where both read one steady
//! counter: see [`shared_now`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A rate is kept when it was measured over this time or more,
const SETTLED: Duration = Duration::from_millis(100);
/// and its error is at most one part in this many.
const EXACT: u64 = 10_000;
/// A rate of less time than this says nothing: reading both times takes some 50 ns.
const LEAST: Duration = Duration::from_micros(50);
/// Both times are read until the reading takes this many ticks or fewer: then no other thread ran in the middle of it.
const NARROW: u64 = 4096;
/// They are read this often at most; the best reading counts then.
const READINGS: usize = 4;

/// Both times at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    ticks: u64,
    time: Duration,
    /// How many ticks the moment took. The system may run another thread in the middle of it.
    width: u64,
}

impl Reading {
    /// Reads both times; `time` is the time since some moment.
    fn new(ticks: impl Fn() -> u64, time: impl Fn() -> Duration) -> Reading {
        let read = || {
            let (before, time) = (ticks(), time());
            let width = ticks().saturating_sub(before);
            let ticks = before + width / 2;
            Reading { ticks, time, width }
        };
        let mut best = read();
        for _ in 1..READINGS {
            if best.width <= NARROW {
                break;
            }
            let next = read();
            if next.width < best.width {
                best = next;
            }
        }
        best
    }

    /// Nanoseconds per tick since `first` in 32.32 fixed point, and whether that is to be kept.
    fn rate_since(&self, first: &Reading) -> (u64, bool) {
        let time = self.time.saturating_sub(first.time);
        let ticks = self.ticks.saturating_sub(first.ticks).max(1);
        let rate = u64::try_from((time.as_nanos() << 32) / u128::from(ticks));
        let error = self.width + first.width;
        let exact = time >= SETTLED && ticks / EXACT >= error;
        (rate.unwrap_or(u64::MAX).max(1), exact)
    }
}

/// When ticks were first read here.
struct Anchor {
    instant: Instant,
    /// None: the counter is not steady, and ticks are nanoseconds.
    reading: Option<Reading>,
}

static ANCHOR: OnceLock<Anchor> = OnceLock::new();
/// Nanoseconds per tick in 32.32 fixed point, once settled; zero before.
static RATE: AtomicU64 = AtomicU64::new(0);

#[inline]
fn anchor() -> &'static Anchor {
    ANCHOR.get_or_init(|| {
        let instant = Instant::now();
        Anchor {
            instant,
            reading: counter_is_steady().then(|| Reading::new(counter_now, || instant.elapsed())),
        }
    })
}

/// Ticks since some moment: only differences mean something. Never goes back in one thread.
#[inline]
pub fn now() -> u64 {
    let anchor = anchor();
    if anchor.reading.is_some() {
        counter_now()
    } else {
        anchor.instant.elapsed().as_nanos() as u64
    }
}

/// As [`now`], where the ticks of other processes of this machine count the same. 0 where they do not.
#[inline]
pub fn shared_now() -> u64 {
    if anchor().reading.is_some() {
        counter_now()
    } else {
        0
    }
}

/// How many nanoseconds a difference of ticks is.
///
/// Nothing is calibrated ahead: the rate is what both times say has passed since the first use. Where the
/// first use is less than [`LEAST`] ago, this waits until then.
pub fn to_ns(ticks: u64) -> u64 {
    let anchor = anchor();
    let Some(first) = &anchor.reading else {
        return ticks;
    };
    let rate = match RATE.load(Ordering::Relaxed) {
        0 => measure(anchor.instant, first),
        rate => rate,
    };
    u64::try_from((u128::from(ticks) * u128::from(rate)) >> 32).unwrap_or(u64::MAX)
}

/// About how many ticks a short duration is, for comparing with differences of [`now`].
pub fn from_duration(duration: Duration) -> u64 {
    // A long difference makes the rate that is known so far exact enough.
    const LONG: u64 = 1 << 30;
    let ns = u128::from(to_ns(LONG).max(1));
    u64::try_from(duration.as_nanos() * u128::from(LONG) / ns).unwrap_or(u64::MAX)
}

/// The same as a [`Duration`].
pub fn to_duration(ticks: u64) -> Duration {
    Duration::from_nanos(to_ns(ticks))
}

#[cold]
fn measure(instant: Instant, first: &Reading) -> u64 {
    let time = || instant.elapsed();
    while time() < first.time + LEAST {
        std::hint::spin_loop();
    }
    let (rate, exact) = Reading::new(counter_now, time).rate_since(first);
    if exact {
        RATE.store(rate, Ordering::Relaxed);
    }
    rate
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter_now() -> u64 {
    // SAFETY: every x86-64 has a time-stamp counter that any process may read; one that is not
    // steady is not used.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Whether the counter ticks at one rate, in every power state.
#[cfg(target_arch = "x86_64")]
fn counter_is_steady() -> bool {
    use std::arch::x86_64::__cpuid;

    const POWER_MANAGEMENT: u32 = 0x8000_0007;
    const INVARIANT: u32 = 1 << 8;
    __cpuid(0x8000_0000).eax >= POWER_MANAGEMENT && __cpuid(POWER_MANAGEMENT).edx & INVARIANT != 0
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn counter_now() -> u64 {
    let ticks: u64;
    // SAFETY: the virtual counter may be read by any process on the systems that Rust runs on; it
    // touches neither memory nor flags.
    unsafe {
        std::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags));
    }
    ticks
}

/// The architecture promises a constant rate.
#[cfg(target_arch = "aarch64")]
fn counter_is_steady() -> bool {
    true
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn counter_now() -> u64 {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn counter_is_steady() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn ticks_agree_with_the_clock() {
        // The machine may stop us between two readings, so the ticks have the clock on both sides.
        let (outer, begin, inner) = (Instant::now(), now(), Instant::now());
        while inner.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let least = inner.elapsed().as_nanos() as u64;
        let ns = to_ns(now() - begin);
        let most = outer.elapsed().as_nanos() as u64;
        assert!(
            ns >= least - least / 4 && ns <= most + most / 10 + 1_000_000,
            "{ns} between {least} and {most}"
        );
    }

    /// A reading of made-up times: the ticks are these, one after the other, at two ticks a nanosecond.
    fn reading_of(readings: &[u64]) -> Reading {
        let (next, last) = (Cell::new(0), Cell::new(0));
        let ticks = || {
            last.set(readings[next.get()]);
            next.set(next.get() + 1);
            last.get()
        };
        Reading::new(ticks, || Duration::from_nanos(last.get() / 2))
    }

    #[test]
    fn a_reading_is_taken_again_if_another_thread_ran_in_the_middle_of_it() {
        let late = 100_000_000;
        let reading = reading_of(&[0, late, late + 100, late + 200]);
        assert_eq!((reading.ticks, reading.width), (late + 150, 100));
        let reading = reading_of(&[0, 9_000, 10_000, 18_000, 20_000, 30_000, 40_000, 50_000]);
        assert_eq!((reading.ticks, reading.width), (14_000, 8_000)); // the narrowest of all
    }

    #[test]
    fn a_rate_that_is_not_exact_is_not_kept() {
        const ROUND: u64 = 1 << 32;
        let at = |nanos: u64, width| Reading {
            ticks: 2 * nanos,
            time: Duration::from_nanos(nanos),
            width,
        };
        let wide = Reading {
            ticks: 100_000_000, // another thread ran for 50 ms before they were read
            ..at(0, 100_000_000)
        };
        let (rate, exact) = at(150_000_000, 100).rate_since(&wide);
        assert!(rate > ROUND / 2 + ROUND / 10 && !exact);
        assert_eq!(
            at(150_000_000, 100).rate_since(&at(0, 100)),
            (ROUND / 2, true)
        );
        assert_eq!(
            at(50_000_000, 100).rate_since(&at(0, 100)),
            (ROUND / 2, false)
        );
        // After a time that is much longer than its readings took, it is exact.
        assert!(at(5_000_000_000_000, 100).rate_since(&wide).1);
    }

    #[test]
    fn ticks_do_not_go_back() {
        let mut last = now();
        for _ in 0..10_000 {
            let next = now();
            assert!(next >= last);
            last = next;
        }
    }

    #[test]
    fn a_long_time_does_not_overflow() {
        assert!(to_ns(u64::MAX / 2) > 0);
    }
}
