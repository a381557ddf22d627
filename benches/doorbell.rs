//! The cost of waking another process, for each kind of doorbell.
//!
//! - `round trip`: both sides ring and wait in turn, as fast as they can.
//! - `wake a sleeper`: one side has slept for a while; time from the ring until it runs.
//! - `ring a sleeper`: time that ringing takes from the side that rings.
//! - `ring without a sleeper`: time of a ring that wakes no process; velo's sleeping flag avoids it.
//!
//! The kinds:
//!
//! - `eventfd`, `pipe`: velo's [`Doorbell`], which an event loop can wait for: a `poll` and a `read`.
//! - `futex`: a word in shared memory and the system's bare call, which blocks a whole thread.
//! - `raw_sync`: that crate's event, a mutex and a condition variable shared by processes.
//! - `spinning`: a word in shared memory, and no system call but a yield in every 256 looks.
//!
//! `cargo bench -p velo-shm --bench doorbell`; one line of it with, for instance,
//! `-- 'wake.*futex'`. `VELO_SHM_BENCH_CHILD` marks the second process.

use std::hint::spin_loop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use criterion::{Bencher, Criterion};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::time::{ClockId, clock_gettime};
use raw_sync::Timeout;
use raw_sync::events::{Event, EventImpl, EventInit, EventState};
use rustix::thread::futex;
use velo_shm::{Doorbell, MemfdSegment, Segment};

const KINDS: [&str; 5] = ["eventfd", "pipe", "futex", "raw_sync", "spinning"];
const CHILD: &str = "VELO_SHM_BENCH_CHILD";

/// Long enough for the other side to be asleep.
const PAUSE: Duration = Duration::from_micros(300);

/// Offsets in the memory that both processes share.
const STOP: usize = 0;
const WOKEN_AT: usize = 64;
const BELLS: [usize; 2] = [512, 1024];
const LEN: usize = 4096;

/// One direction: one process rings, the other waits.
enum Bell<'a> {
    Fd(Doorbell),
    Futex(&'a AtomicU32),
    RawSync(Box<dyn EventImpl>),
    Spinning(&'a AtomicU32),
}

impl Bell<'_> {
    #[inline]
    fn ring(&self) {
        match self {
            Bell::Fd(bell) => bell.ring(),
            Bell::Futex(word) => {
                word.store(1, Ordering::Release);
                futex::wake(word, futex::Flags::empty(), 1).unwrap();
            }
            Bell::RawSync(event) => event.set(EventState::Signaled).unwrap(),
            Bell::Spinning(word) => word.store(1, Ordering::Release),
        }
    }

    /// Waits for a ring, and drains it.
    #[inline]
    fn wait(&self) {
        match self {
            Bell::Fd(bell) => {
                bell.wait(None).unwrap();
                bell.drain();
            }
            Bell::Futex(word) => {
                while word.swap(0, Ordering::Acquire) == 0 {
                    // An error means a ring in the meantime, or a signal.
                    let _ = futex::wait(word, futex::Flags::empty(), 0, None);
                }
            }
            Bell::RawSync(event) => event.wait(Timeout::Infinite).unwrap(),
            Bell::Spinning(word) => {
                let mut looks = 0u32;
                while word.swap(0, Ordering::Acquire) == 0 {
                    looks = looks.wrapping_add(1);
                    match looks.is_multiple_of(256) {
                        true => std::thread::yield_now(),
                        false => spin_loop(),
                    }
                }
            }
        }
    }
}

/// The memory that both processes map.
struct Shared(MemfdSegment);

impl Shared {
    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: inside the page and aligned; both processes use only atomics at this offset.
        unsafe { self.0.base().add(offset).cast().as_ref() }
    }

    fn clock(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { self.0.base().add(WOKEN_AT).cast().as_ref() }
    }

    fn bell(&self, kind: &str, number: usize, make: bool, fds: &[OwnedFd]) -> Bell<'_> {
        let offset = BELLS[number];
        match kind {
            "eventfd" => Bell::Fd(Doorbell::from_fd(fds[number].try_clone().unwrap()).unwrap()),
            "pipe" => {
                let [reader, writer] = [0, 1].map(|end| fds[2 * number + end].try_clone().unwrap());
                Bell::Fd(Doorbell::from_pipe(reader, writer).unwrap())
            }
            "futex" => Bell::Futex(self.word(offset)),
            "spinning" => Bell::Spinning(self.word(offset)),
            "raw_sync" => {
                let place = self.0.base().as_ptr().wrapping_add(offset);
                // SAFETY: the 512 bytes from here belong to this event alone, and the mapping outlives
                // it; the process that makes it does so before it starts the other.
                let event = unsafe {
                    match make {
                        true => Event::new(place, true),
                        false => Event::from_existing(place),
                    }
                };
                Bell::RawSync(event.unwrap().0)
            }
            other => unreachable!("no kind `{other}`"),
        }
    }
}

/// Nanoseconds of a clock that all processes share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

fn descriptors(kind: &str) -> Vec<OwnedFd> {
    let bells = [(); 2].map(|()| match kind {
        "pipe" => Doorbell::create_pipe().unwrap(),
        _ => Doorbell::create().unwrap(),
    });
    let fds = bells.iter().flat_map(|bell| match kind {
        "eventfd" => vec![bell.as_fd()],
        "pipe" => vec![bell.as_fd(), bell.ringing_fd()],
        _ => vec![],
    });
    fds.map(|fd| fd.try_clone_to_owned().unwrap()).collect()
}

/// Runs `bench` with another process that answers every ring.
fn beside_another(kind: &str, bench: impl FnOnce(&Shared, &Bell<'_>, &Bell<'_>)) {
    let shared = Shared(MemfdSegment::create(LEN).unwrap());
    let fds = descriptors(kind);
    let [there, back] = [0, 1].map(|number| shared.bell(kind, number, true, &fds));
    let mut child = start_child(kind, &shared, &fds);
    bench(&shared, &there, &back);
    shared.word(STOP).store(1, Ordering::Release);
    there.ring();
    assert!(child.wait().unwrap().success());
}

fn start_child(kind: &str, shared: &Shared, fds: &[OwnedFd]) -> Child {
    // Descriptors without close-on-exec: the child uses them by number.
    let inherited = std::iter::once(shared.0.as_fd())
        .chain(fds.iter().map(AsFd::as_fd))
        .map(|fd| {
            let fd = fd.try_clone_to_owned().unwrap();
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
            fd
        })
        .collect::<Vec<_>>();
    let numbers = inherited.iter().map(|fd| fd.as_raw_fd().to_string());
    let arguments = std::iter::once(kind.to_owned()).chain(numbers);
    Command::new(std::env::current_exe().unwrap())
        .env(CHILD, arguments.collect::<Vec<_>>().join(","))
        .spawn()
        .unwrap()
}

/// The main function of the second process.
fn child(arguments: &str) {
    let (kind, numbers) = arguments.split_once(',').unwrap();
    let mut fds = numbers.split(',').map(|number| {
        let number: RawFd = number.parse().unwrap();
        // SAFETY: the parent left this descriptor open for this process, which has no other owner of it.
        unsafe { OwnedFd::from_raw_fd(number) }
    });
    let shared = Shared(MemfdSegment::from_fd(fds.next().unwrap()).unwrap());
    let fds: Vec<OwnedFd> = fds.collect();
    let [there, back] = [0, 1].map(|number| shared.bell(kind, number, false, &fds));
    loop {
        there.wait();
        shared.clock().store(now(), Ordering::Release);
        if shared.word(STOP).load(Ordering::Acquire) == 1 {
            return;
        }
        back.ring();
    }
}

fn round_trip(bencher: &mut Bencher, kind: &str) {
    beside_another(kind, |_, there, back| {
        bencher.iter(|| {
            there.ring();
            back.wait();
        });
    });
}

/// Rings for a sleeper, again and again. `took` makes a time from the moments when the ring began,
/// when it returned, and when the sleeper ran.
fn after_a_pause(bencher: &mut Bencher, kind: &str, took: impl Fn(u64, u64, u64) -> u64) {
    beside_another(kind, |shared, there, back| {
        bencher.iter_custom(|count| {
            let mut total = 0;
            for _ in 0..count {
                std::thread::sleep(PAUSE);
                let begun = now();
                there.ring();
                let rung = now();
                back.wait();
                total += took(begun, rung, shared.clock().load(Ordering::Acquire));
            }
            Duration::from_nanos(total)
        });
    });
}

fn without_a_sleeper(bencher: &mut Bencher, kind: &str) {
    let shared = Shared(MemfdSegment::create(LEN).unwrap());
    let fds = descriptors(kind);
    let bell = shared.bell(kind, 0, true, &fds);
    bencher.iter_custom(|count| {
        let mut total = Duration::ZERO;
        // A pipe is full after more rings than that.
        for rings in (0..count)
            .step_by(1000)
            .map(|done| (count - done).min(1000))
        {
            let begun = now();
            for _ in 0..rings {
                bell.ring();
            }
            total += Duration::from_nanos(now() - begun);
            bell.wait();
        }
        total
    });
}

fn benches(criterion: &mut Criterion) {
    type Bench = fn(&mut Bencher, &str);
    let all: [(&str, Bench); 4] = [
        ("round trip", round_trip),
        ("wake a sleeper", |bencher, kind| {
            after_a_pause(bencher, kind, |begun, _, ran| ran.saturating_sub(begun));
        }),
        ("ring a sleeper", |bencher, kind| {
            after_a_pause(bencher, kind, |begun, rung, _| rung - begun);
        }),
        ("ring without a sleeper", without_a_sleeper),
    ];
    for (name, bench) in all {
        let mut group = criterion.benchmark_group(name);
        for kind in KINDS {
            group.bench_function(kind, |bencher| bench(bencher, kind));
        }
        group.finish();
    }
}

fn main() {
    if let Ok(arguments) = std::env::var(CHILD) {
        return child(&arguments);
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .configure_from_args();
    benches(&mut criterion);
    criterion.final_summary();
}
