//! The zygote and the workers of these tests. A worker echoes what comes over slot 1 of a link; some
//! messages make it misbehave instead.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::ForkResult;
use velo_shm::{Consumer, Limits, Link, Producer};
use velo_supervisor::zygote::{self, Role};
use velo_supervisor::{LinkId, WorkerControl, WorkerControlEvent};

/// Names how zygote and workers behave.
pub const MODE_ENV: &str = "VELO_TEST_MODE";
/// The slot that the tests talk over, and the kind of their frames.
pub const SLOT: u32 = 1;
pub const KIND: u8 = 2;
pub const LIMITS: Limits = Limits {
    events: 1024,
    bytes: 1 << 20,
};

/// The main function of a process that a supervisor has started.
pub fn main() -> ! {
    let mode = std::env::var(MODE_ENV).unwrap_or_default();
    if mode == "broken-zygote" {
        std::process::exit(9);
    }
    if mode == "threaded" {
        std::thread::spawn(std::thread::park);
    }
    // SAFETY: called once, in a process that a supervisor has started.
    let fd = unsafe { zygote::inherited_fd() }.expect("a supervisor");
    if mode == "old-zygote" {
        answer_in_another_version(fd);
    }
    let fork = || -> io::Result<i32> {
        // SAFETY: no thread of the zygote holds anything that the child needs.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => Ok(0),
            ForkResult::Parent { child } => Ok(child.as_raw()),
        }
    };
    match zygote::serve(fd, fork, |_, _| Ok(())).expect("the zygote serves") {
        Role::Done => std::process::exit(0),
        Role::Worker(control) => serve(control, &mode),
    }
}

/// A zygote of some later velo.
fn answer_in_another_version(fd: OwnedFd) -> ! {
    let fields = BTreeMap::from([("version", 99), ("threads", 1)]);
    let message = BTreeMap::from([("Ready", fields)]);
    let payload = rmp_serde::to_vec_named(&message).expect("encode");
    let mut socket = UnixStream::from(fd);
    let len = u32::try_from(payload.len()).expect("a small message");
    let header = [&0x5645_u16.to_le_bytes()[..], &[0, 0], &len.to_le_bytes()].concat();
    socket
        .write_all(&[header, payload].concat())
        .expect("write");
    // Until the supervisor hangs up.
    socket.set_nonblocking(false).expect("a blocking socket");
    let _ = io::copy(&mut socket, &mut io::sink());
    std::process::exit(0)
}

struct Served {
    link: LinkId,
    end: Link,
    producer: Producer,
    consumer: Consumer,
}

fn serve(mut control: WorkerControl, mode: &str) -> ! {
    match mode {
        "crash" => std::process::exit(7),
        // A worker that never gets a chance to look at anything.
        "stuck" => stuck(),
        _ => control.start_watchdog(),
    }
    let mut links: Vec<Served> = Vec::new();
    loop {
        for event in control.poll().expect("the control socket holds") {
            match event {
                WorkerControlEvent::Attach { link, end } => {
                    let (producer, consumer) = end.open_slot(SLOT, LIMITS).expect("a slot");
                    links.push(Served {
                        link,
                        end,
                        producer,
                        consumer,
                    });
                }
                WorkerControlEvent::Detach { link } => {
                    links.retain(|served| served.link != link);
                    control.detached(link).expect("the control socket holds");
                }
                WorkerControlEvent::Ask { ask, question } => {
                    let answer = format!("{question:?}");
                    control.tell(ask, answer).expect("the control socket holds");
                }
                WorkerControlEvent::ReleaseKey { key, grant } => {
                    control
                        .key_free(key, grant, false)
                        .expect("the control socket holds");
                }
                WorkerControlEvent::Retire => {} // it keeps nothing
                WorkerControlEvent::Drain => std::process::exit(0),
                WorkerControlEvent::Lost | WorkerControlEvent::Orphaned => std::process::exit(1),
            }
        }
        let mut busy = false;
        for served in &mut links {
            served.end.arm();
            busy |= echo(served);
        }
        if busy {
            continue;
        }
        let mut fds = vec![readable(control.as_fd())];
        fds.extend(
            links
                .iter()
                .map(|served| readable(served.end.doorbell().as_fd())),
        );
        let _ = poll(&mut fds, PollTimeout::NONE);
        for served in &links {
            served.end.disarm();
            served.end.doorbell().drain();
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// Answers one message, if one is there.
fn echo(served: &mut Served) -> bool {
    served.end.take_ready(|_| {});
    let Some(frame) = served.consumer.peek().expect("an honest client") else {
        return false;
    };
    match frame.payload {
        b"exit" => std::process::exit(42),
        b"spin" => stuck(),
        b"deaf" => {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe {
                nix::sys::signal::signal(
                    nix::sys::signal::Signal::SIGTERM,
                    nix::sys::signal::SigHandler::SigIgn,
                )
            }
            .expect("ignore SIGTERM");
        }
        _ => {}
    }
    let deaf = frame.payload == b"deaf";
    let mut room = served
        .producer
        .reserve(frame.payload.len(), true)
        .expect("room for an answer");
    room[..frame.payload.len()].copy_from_slice(frame.payload);
    room.commit(KIND, frame.payload.len());
    served.consumer.release();
    served.producer.publish();
    served.consumer.publish();
    served.end.notify(SLOT);
    if deaf {
        stuck();
    }
    true
}

/// Never looks at anything again, as native code may.
fn stuck() -> ! {
    loop {
        std::hint::spin_loop();
    }
}
