//! The cost of an event, by its size: written into the ring, and copied out of it.
//!
//! - `one thread`: push and pop in turn, every event published by itself: the bare work.
//!   `one thread burst` publishes once in 32 events on both sides.
//! - `two threads`, `two processes`: the sender as fast as it can, the receiver on another core,
//!   both spinning; time until the last event was released, divided by their number. `burst`
//!   publishes once in 32 events.
//! - `rtrb`: the same between two threads with a ring of bytes without messages.
//! - `memcpy`: one copy of the payload; each of the above makes two.
//!
//! `cargo bench -p velo-shm`; one line of it with, for instance, `-- 'two processes/64'`.

use std::hint::{black_box, spin_loop};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Bencher, BenchmarkId, Criterion, Throughput};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use velo_shm::{
    Bells, Consumer, Doorbell, Limits, Link, LinkSpec, MemfdSegment, Producer, Side, initialise,
};

const SIZES: [usize; 5] = [8, 64, 1 << 10, 64 << 10, 1 << 20];
const BURST: u64 = 32;
const EVENT: u8 = 2;
const STOP: u8 = 3;
const CHILD: &str = "VELO_SHM_BENCH_CHILD";

fn spec() -> LinkSpec {
    LinkSpec {
        slots: 1,
        ring_bytes: 2048,
        heap_bytes: 64 << 20,
    }
}

/// Room for some events of every size, and, where possible, small enough for a cache.
fn limits(size: usize) -> Limits {
    Limits {
        events: 1 << 20,
        bytes: capacity(size) as u64,
    }
}

fn capacity(size: usize) -> usize {
    (8 * size).next_power_of_two().max(64 << 10)
}

fn bells() -> Bells {
    Bells {
        mine: Doorbell::create().unwrap(),
        theirs: Doorbell::create().unwrap(),
    }
}

/// A link whose doorbells are not used: both sides spin here.
fn link() -> (Arc<MemfdSegment>, Link) {
    let segment = Arc::new(MemfdSegment::create(spec().segment_len()).unwrap());
    initialise(&*segment, &spec()).unwrap();
    let client = Link::attach(segment.clone(), Side::Client, bells()).unwrap();
    (segment, client)
}

fn ring(size: usize) -> (Producer, Consumer) {
    let (segment, client) = link();
    let worker = Link::attach(segment, Side::Worker, bells()).unwrap();
    let (producer, _) = client.open_slot(0, limits(size)).unwrap();
    let (_, consumer) = worker.open_slot(0, limits(size)).unwrap();
    (producer, consumer)
}

/// Yields now and then, for machines with more runnable processes than cores.
fn pause(tries: &mut u32) {
    *tries += 1;
    if tries.is_multiple_of(256) {
        std::thread::yield_now()
    } else {
        spin_loop()
    }
}

#[inline]
fn push(producer: &mut Producer, kind: u8, payload: &[u8]) {
    let mut tries = 0;
    loop {
        if let Ok(mut room) = producer.reserve(payload.len(), true) {
            room[..payload.len()].copy_from_slice(payload);
            room.commit(kind, payload.len());
            return;
        }
        producer.publish();
        pause(&mut tries);
    }
}

/// Sends `count` events and waits until the last is released.
fn send(producer: &mut Producer, payload: &[u8], count: u64, burst: u64) -> Duration {
    let begin = Instant::now();
    for number in 1..=count {
        push(producer, EVENT, payload);
        if number % burst == 0 {
            producer.publish();
        }
    }
    producer.publish();
    let mut tries = 0;
    while producer.in_flight() > 0 {
        pause(&mut tries);
    }
    begin.elapsed()
}

/// Copies events out until the stop event.
fn receive(consumer: &mut Consumer, burst: u64) {
    let mut buffer = vec![0; SIZES[SIZES.len() - 1]];
    let (mut tries, mut since) = (0, 0);
    loop {
        let Some(frame) = consumer.peek().unwrap() else {
            consumer.publish();
            since = 0;
            pause(&mut tries);
            continue;
        };
        let stop = frame.kind == STOP;
        let buffer = &mut buffer[..frame.payload.len()];
        buffer.copy_from_slice(frame.payload);
        black_box(buffer);
        consumer.release();
        since += 1;
        if since >= burst {
            consumer.publish();
            since = 0;
        }
        if stop {
            consumer.publish();
            return;
        }
    }
}

fn one_thread(bencher: &mut Bencher, size: usize) {
    let (mut producer, mut consumer) = ring(size);
    let payload = vec![7; size];
    let mut buffer = vec![0; size];
    bencher.iter(|| {
        let mut room = producer.reserve(size, true).unwrap();
        room[..size].copy_from_slice(&payload);
        room.commit(EVENT, size);
        producer.publish();
        let frame = consumer.peek().unwrap().unwrap();
        buffer.copy_from_slice(frame.payload);
        black_box(&mut buffer);
        consumer.release();
        consumer.publish();
    });
}

fn one_thread_burst(bencher: &mut Bencher, size: usize) {
    let (mut producer, mut consumer) = ring(size);
    let payload = vec![7; size];
    let mut buffer = vec![0; size];
    // As many as fit for every size, so that nothing is ever full.
    let burst = BURST.min((capacity(size) / size / 2) as u64);
    bencher.iter_custom(|count| {
        let begin = Instant::now();
        for _ in 0..count.div_ceil(burst) {
            for _ in 0..burst {
                push(&mut producer, EVENT, &payload);
            }
            producer.publish();
            while let Some(frame) = consumer.peek().unwrap() {
                buffer.copy_from_slice(frame.payload);
                black_box(&mut buffer);
                consumer.release();
            }
            consumer.publish();
        }
        begin
            .elapsed()
            .mul_f64(count as f64 / (count.div_ceil(burst) * burst) as f64)
    });
}

fn two_threads(bencher: &mut Bencher, size: usize, burst: u64) {
    let (mut producer, mut consumer) = ring(size);
    let receiver = std::thread::spawn(move || receive(&mut consumer, burst));
    let payload = vec![7; size];
    bencher.iter_custom(|count| send(&mut producer, &payload, count, burst));
    push(&mut producer, STOP, &[]);
    producer.publish();
    receiver.join().unwrap();
}

fn two_processes(bencher: &mut Bencher, size: usize, burst: u64) {
    let (segment, client) = link();
    let mut child = start_child(&segment, size, burst);
    let (mut producer, _) = client.open_slot(0, limits(size)).unwrap();
    let payload = vec![7; size];
    bencher.iter_custom(|count| send(&mut producer, &payload, count, burst));
    push(&mut producer, STOP, &[]);
    producer.publish();
    assert!(child.wait().unwrap().success());
}

fn start_child(segment: &MemfdSegment, size: usize, burst: u64) -> Child {
    let fd = segment.as_fd().try_clone_to_owned().unwrap();
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .env(CHILD, format!("{},{size},{burst}", fd.as_raw_fd()))
        .spawn()
        .unwrap()
}

/// The main function of the second process.
fn child(arguments: &str) {
    let numbers: Vec<usize> = arguments
        .split(',')
        .map(|number| number.parse().unwrap())
        .collect();
    // SAFETY: the parent left this descriptor open for this process, which has no other owner of it.
    let fd = unsafe { OwnedFd::from_raw_fd(numbers[0] as i32) };
    let segment = Arc::new(MemfdSegment::from_fd(fd).unwrap());
    let worker = Link::attach(segment, Side::Worker, bells()).unwrap();
    let (_, mut consumer) = worker.open_slot(0, limits(numbers[1])).unwrap();
    receive(&mut consumer, numbers[2] as u64);
}

fn rtrb(bencher: &mut Bencher, size: usize) {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<u8>::new(capacity(size));
    let (done, wait) = std::sync::mpsc::channel();
    let (start, started) = std::sync::mpsc::channel::<u64>();
    let receiver = std::thread::spawn(move || {
        let mut buffer = vec![0; size];
        let mut tries = 0;
        for count in started {
            for _ in 0..count {
                let chunk = loop {
                    match consumer.read_chunk(size) {
                        Ok(chunk) => break chunk,
                        Err(_) => pause(&mut tries),
                    }
                };
                let (first, second) = chunk.as_slices();
                buffer[..first.len()].copy_from_slice(first);
                buffer[first.len()..].copy_from_slice(second);
                black_box(&mut buffer);
                chunk.commit_all();
            }
            done.send(()).unwrap();
        }
    });
    let payload = vec![7; size];
    bencher.iter_custom(|count| {
        start.send(count).unwrap();
        let begin = Instant::now();
        let mut tries = 0;
        for _ in 0..count {
            let mut chunk = loop {
                match producer.write_chunk(size) {
                    Ok(chunk) => break chunk,
                    Err(_) => pause(&mut tries),
                }
            };
            let (first, second) = chunk.as_mut_slices();
            let middle = first.len();
            first.copy_from_slice(&payload[..middle]);
            second.copy_from_slice(&payload[middle..]);
            chunk.commit_all();
        }
        wait.recv().unwrap();
        begin.elapsed()
    });
    drop(start);
    receiver.join().unwrap();
}

fn memcpy(bencher: &mut Bencher, size: usize) {
    let source = vec![7u8; size];
    let mut target = vec![0u8; size];
    bencher.iter(|| {
        target.copy_from_slice(black_box(&source));
        black_box(&mut target);
    });
}

fn benches(criterion: &mut Criterion) {
    type Bench = fn(&mut Bencher, usize);
    let all: [(&str, Bench); 8] = [
        ("one thread", one_thread),
        ("one thread burst", one_thread_burst),
        ("two threads", |bencher, size| two_threads(bencher, size, 1)),
        ("two threads burst", |bencher, size| {
            two_threads(bencher, size, BURST)
        }),
        ("two processes", |bencher, size| {
            two_processes(bencher, size, 1)
        }),
        ("two processes burst", |bencher, size| {
            two_processes(bencher, size, BURST)
        }),
        ("rtrb", rtrb),
        ("memcpy", memcpy),
    ];
    for (name, bench) in all {
        let mut group = criterion.benchmark_group(name);
        for size in SIZES {
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_with_input(
                BenchmarkId::from_parameter(size),
                &size,
                |bencher, &size| {
                    bench(bencher, size);
                },
            );
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
