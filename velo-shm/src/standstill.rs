//! Time in which this process stood still: stopped (`SIGSTOP`, Ctrl-Z) or frozen (`docker pause`). It is to
//! count for no time limit.
//!
//! While a limit runs, a thread looks at the clock at regular intervals. A look that comes late by more
//! than a thread of a busy machine ever is shows that no thread of the process ran. The thread takes no lock of
//! an interpreter, so that functions cannot delay it, and it sleeps while no limit runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::fork;

/// How many looks are taken within the shortest limit, and the bounds of the time between two of them.
const LOOKS_PER_LIMIT: u32 = 16;
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// The delay of a look that a busy machine may cause.
const SLACK: Duration = Duration::from_millis(100);
/// The number of standstills that are kept; older ones count as time that has passed.
const MOST: usize = 64;

/// The decision: which of the time between looks was a standstill. Times are durations since any moment.
#[derive(Debug, Default)]
struct Looks {
    /// The last look, and the time to the next one; None while no limit runs.
    last: Option<(Duration, Duration)>,
    /// The standstills so far: begin and end.
    standstills: VecDeque<(Duration, Duration)>,
    /// How long all of them took, including those that are not told apart any more.
    total: Duration,
}

impl Looks {
    /// The standstill that goes on, or has just ended.
    fn current(&self, now: Duration) -> Option<(Duration, Duration)> {
        let (last, interval) = self.last?;
        (now > last + interval + SLACK).then_some((last, now))
    }

    /// Looks, and looks again after `interval`; None: no limit runs.
    fn look(&mut self, now: Duration, interval: Option<Duration>) {
        if let Some((begin, end)) = self.current(now) {
            self.standstills.push_back((begin, end));
            self.total += end - begin;
            if self.standstills.len() > MOST {
                self.standstills.pop_front();
            }
        }
        self.last = interval.map(|interval| (now, interval));
    }

    /// How much of the time since `then` was a standstill.
    fn since(&self, then: Duration, now: Duration) -> Duration {
        let all = self.standstills.iter().copied().chain(self.current(now));
        all.map(|(begin, end)| end.saturating_sub(begin.max(then)))
            .sum()
    }

    /// How much of all time was.
    fn total(&self, now: Duration) -> Duration {
        let current = self.current(now);
        self.total + current.map_or(Duration::ZERO, |(begin, end)| end - begin)
    }
}

/// The looks of one process, and its thread.
#[derive(Default)]
struct Monitor {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    looks: Looks,
    /// How many limits ask for each interval.
    intervals: BTreeMap<Duration, usize>,
    /// The thread was started; false if it cannot be.
    thread: Option<bool>,
    /// For how long the thread sleeps; None: until it is notified.
    sleeps: Option<Duration>,
}

impl Inner {
    fn interval(&self) -> Option<Duration> {
        let shortest = self.intervals.keys().next().copied();
        shortest.filter(|_| self.thread == Some(true))
    }
}

/// Forked processes have monitors of their own: they have no thread of their parent's, and one of its threads
/// may hold a lock for ever there. Only so many generations can have one.
static MONITORS: [OnceLock<Monitor>; 8] = [const { OnceLock::new() }; 8];

fn monitor() -> Option<(&'static Monitor, usize)> {
    let generation = generation();
    let monitor = MONITORS.get(generation)?.get_or_init(Monitor::default);
    Some((monitor, generation))
}

fn generation() -> usize {
    fork::watch(); // the thread that is started here has no copy in a child
    fork::generation() as usize
}

fn clock() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}

impl Monitor {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the limits which run are others.
    fn change(&'static self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        let before = inner.interval();
        change(&mut inner);
        if inner.thread.is_none() && !inner.intervals.is_empty() {
            inner.thread = Some(self.start());
        }
        let interval = inner.interval();
        if interval == before {
            return;
        }
        inner.looks.look(clock(), interval);
        // The thread notices by itself that it may look less often, or not at all: limits come and go.
        let late =
            interval.is_some_and(|interval| inner.sleeps.is_none_or(|sleeps| interval < sleeps));
        drop(inner);
        if late {
            self.changed.notify_one();
        }
    }

    /// Starts the thread, which gets no signals. False if there cannot be one more.
    fn start(&'static self) -> bool {
        let thread = std::thread::Builder::new().name("velo-clock".into());
        without_signals(|| thread.spawn(move || self.run())).is_ok()
    }

    fn run(&self) {
        let mut inner = self.lock();
        loop {
            inner.sleeps = inner.interval();
            inner = match inner.sleeps {
                None => self.changed.wait(inner),
                Some(interval) => self
                    .changed
                    .wait_timeout(inner, interval)
                    .map(|(inner, _)| inner)
                    .map_err(|poisoned| PoisonError::new(poisoned.into_inner().0)),
            }
            .unwrap_or_else(PoisonError::into_inner);
            let interval = inner.interval();
            inner.looks.look(clock(), interval);
        }
    }
}

/// Starts something that no signal is to come to.
#[cfg(unix)]
fn without_signals<R>(start: impl FnOnce() -> R) -> R {
    use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

    let mut mask = SigSet::empty();
    let blocked = pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut mask),
    );
    let started = start();
    if blocked.is_ok() {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
    }
    started
}

/// Python handles signals in its own thread.
#[cfg(not(unix))]
fn without_signals<R>(start: impl FnOnce() -> R) -> R {
    start()
}

/// How often to look while a limit of this length runs. There are few different intervals, so that one limit
/// after the other does not wake the thread.
fn interval_of(limit: Duration) -> Duration {
    let wanted = (limit / LOOKS_PER_LIMIT).clamp(SHORTEST, LONGEST);
    let mut interval = LONGEST;
    while interval > wanted {
        interval /= 2;
    }
    interval.max(SHORTEST)
}

/// A time limit that runs: standstills are noticed meanwhile.
#[derive(Debug)]
pub struct RunningLimit {
    interval: Duration,
    generation: usize,
}

impl RunningLimit {
    /// A limit of this length runs until this is dropped.
    pub fn new(limit: Duration) -> Self {
        let interval = interval_of(limit);
        let generation = match monitor() {
            None => usize::MAX,
            Some((monitor, generation)) => {
                monitor.change(|inner| *inner.intervals.entry(interval).or_default() += 1);
                generation
            }
        };
        RunningLimit {
            interval,
            generation,
        }
    }
}

impl Drop for RunningLimit {
    fn drop(&mut self) {
        // That of a process that forked this one is of no use here.
        let Some((monitor, _)) = monitor().filter(|&(_, generation)| generation == self.generation)
        else {
            return;
        };
        monitor.change(|inner| {
            if let Some(count) = inner.intervals.get_mut(&self.interval) {
                *count -= 1;
                if *count == 0 {
                    inner.intervals.remove(&self.interval);
                }
            }
        });
    }
}

/// How much of the last `span` this process stood still for, as far as a [`RunningLimit`] was there.
pub fn within(span: Duration) -> Duration {
    let Some((monitor, _)) = monitor() else {
        return Duration::ZERO;
    };
    let inner = monitor.lock();
    let now = clock();
    inner.looks.since(now.saturating_sub(span), now)
}

/// How long this process stood still since it began, as far as a [`RunningLimit`] was there.
pub fn total() -> Duration {
    monitor().map_or(Duration::ZERO, |(monitor, _)| {
        monitor.lock().looks.total(clock())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn look(looks: &mut Looks, seconds: f64) {
        looks.look(at(seconds), Some(SECOND));
    }

    #[test]
    fn looks_in_time_show_no_standstill() {
        let mut looks = Looks::default();
        for seconds in [0.0, 1.0, 2.0, 3.05, 4.1] {
            look(&mut looks, seconds);
        }
        assert_eq!(looks.since(at(0.0), at(5.0)), Duration::ZERO);
        assert_eq!(looks.total(at(5.0)), Duration::ZERO);
    }

    #[test]
    fn a_late_look_shows_one_and_only_what_is_asked_for_counts() {
        let mut looks = Looks::default();
        look(&mut looks, 0.0);
        look(&mut looks, 1.0);
        look(&mut looks, 8.0);
        look(&mut looks, 9.0);
        assert_eq!(looks.since(at(0.0), at(9.5)), at(7.0));
        assert_eq!(looks.since(at(5.0), at(9.5)), at(3.0));
        assert_eq!(looks.since(at(8.0), at(9.5)), Duration::ZERO);
        assert_eq!(looks.total(at(9.5)), at(7.0));
    }

    #[test]
    fn it_counts_before_the_thread_has_looked() {
        let mut looks = Looks::default();
        look(&mut looks, 1.0);
        assert_eq!(looks.since(at(0.0), at(2.0)), Duration::ZERO);
        assert_eq!(looks.since(at(0.0), at(7.0)), at(6.0));
        assert_eq!(looks.total(at(7.0)), at(6.0));
        look(&mut looks, 7.0);
        assert_eq!(looks.total(at(7.0)), at(6.0), "and once");
    }

    #[test]
    fn it_counts_where_the_last_limit_ends_right_after_it() {
        let mut looks = Looks::default();
        look(&mut looks, 1.0);
        looks.look(at(7.0), None);
        assert_eq!(looks.since(at(0.0), at(50.0)), at(6.0));
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let mut looks = Looks::default();
        looks.look(at(1.0), None);
        look(&mut looks, 100.0);
        assert_eq!(looks.total(at(100.5)), Duration::ZERO);
    }

    #[test]
    fn old_ones_are_forgotten() {
        let mut looks = Looks::default();
        for number in 0..2 * MOST {
            look(&mut looks, 10.0 * number as f64);
        }
        assert_eq!(looks.standstills.len(), MOST);
    }

    #[test]
    fn looks_are_as_frequent_as_the_limit_asks_for() {
        let ms = Duration::from_millis;
        let pairs = [
            (0, 50),
            (1_000, 62),
            (4_000, 250),
            (16_000, 1_000),
            (3_600_000, 1_000),
        ];
        for (limit, interval) in pairs {
            assert_eq!(interval_of(ms(limit)).as_millis(), interval, "{limit} ms");
        }
    }

    #[test]
    fn the_thread_looks_while_a_limit_runs() {
        let limit = RunningLimit::new(Duration::from_secs(3600));
        let shorter = RunningLimit::new(Duration::ZERO);
        let (monitor, _) = monitor().expect("a monitor");
        let last = || monitor.lock().looks.last;
        let interval = |last: Option<(Duration, Duration)>| last.map(|(_, interval)| interval);
        let first = last();
        assert_eq!(interval(first), Some(SHORTEST));
        while last() == first {
            std::thread::yield_now();
        }
        drop(shorter);
        assert_eq!(interval(last()), Some(LONGEST));
        drop(limit);
        assert_eq!(last(), None);
    }
}
