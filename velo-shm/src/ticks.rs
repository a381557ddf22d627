//! Time that is cheap to read, for measuring durations. Not a clock: it has no
//! beginning that means anything. Two processes' ticks are compared only where both read one steady
//! counter: see [`shared_now`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After this long the rate is known well enough to be kept: an error of a microsecond in a
/// hundred milliseconds.
const SETTLED: Duration = Duration::from_millis(100);

/// When ticks were first read here, in both times.
struct Anchor {
    ticks: u64,
    instant: Instant,
    counter: bool,
}

static ANCHOR: OnceLock<Anchor> = OnceLock::new();
/// Nanoseconds per tick in 32.32 fixed point, once settled; zero before.
static RATE: AtomicU64 = AtomicU64::new(0);

#[inline]
fn anchor() -> &'static Anchor {
    ANCHOR.get_or_init(|| {
        let counter = counter_is_steady();
        Anchor {
            instant: Instant::now(),
            ticks: if counter { counter_now() } else { 0 },
            counter,
        }
    })
}

/// Ticks since some moment: only differences mean something. Never goes back in one thread.
#[inline]
pub fn now() -> u64 {
    let anchor = anchor();
    if anchor.counter {
        counter_now()
    } else {
        anchor.instant.elapsed().as_nanos() as u64
    }
}

/// As [`now`], where the ticks of other processes of this machine count the same. 0 where they do not.
#[inline]
pub fn shared_now() -> u64 {
    if anchor().counter { counter_now() } else { 0 }
}

/// How many nanoseconds a difference of ticks is.
///
/// Nothing is calibrated ahead: the rate is what both times say has passed since the first use.
pub fn to_ns(ticks: u64) -> u64 {
    let anchor = anchor();
    if !anchor.counter {
        return ticks;
    }
    let rate = match RATE.load(Ordering::Relaxed) {
        0 => measure(anchor),
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
fn measure(anchor: &Anchor) -> u64 {
    let elapsed = anchor.instant.elapsed();
    let ticks = counter_now().saturating_sub(anchor.ticks).max(1);
    let rate = (elapsed.as_nanos() << 32) / u128::from(ticks);
    let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
    if elapsed >= SETTLED {
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
    use super::*;

    #[test]
    fn ticks_agree_with_the_clock() {
        let (begin, instant) = (now(), Instant::now());
        while instant.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let ns = to_ns(now() - begin);
        let real = instant.elapsed().as_nanos() as u64;
        // The machine may stop us between the two looks, but not make time run backwards.
        assert!(
            ns > 15_000_000 && ns <= real + real / 10 + 1_000_000,
            "{ns} of {real}"
        );
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
