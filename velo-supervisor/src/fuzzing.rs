//! Ways in for the fuzz targets (`fuzz/`): the control protocol from its other side, and the pool
//! with a world that says anything. Not part of a build that anyone uses.

use std::collections::HashSet;
use std::fmt::Debug;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::os;
use crate::os::exit::Exit;
use crate::os::fds::{InChild, TrackedFd};
use crate::pool::{Action, Gauges, Pool, Settings, Watch, WorkerId};
use crate::wire::control::Control;
use crate::wire::protocol::{
    ClientStatus, FromClient, FromWorker, FromZygote, Killed, LinkId, LinkLook, Order,
    PROTOCOL_VERSION, PreloadFailure, Question, Ran, Refusal, RequestId, Status, StreamLook,
    ToClient, ToWorker, ToZygote, Welcome, WorkerInfo, WorkerLook, WorkerStatus,
};
use crate::wire::transport::{Channel, Received, TransportError, pair};
use crate::worker_control::WorkerControl;
use velo_shm::{Allowance, Progress, Running, Setting};

/// What a peer writes at a time, and how many descriptors it passes with it.
pub type Piece = (Vec<u8>, u8);

/// Has one of the six kinds of message read from what a peer writes; and, for the last two, what is
/// done with it.
pub fn converse(reader: u8, pieces: &[Piece]) {
    match reader % 8 {
        0 => read::<FromClient>(pieces),
        1 => read::<ToClient>(pieces),
        2 => read::<ToZygote>(pieces),
        3 => read::<FromZygote>(pieces),
        4 => read::<ToWorker>(pieces),
        5 => read::<FromWorker>(pieces),
        6 => {
            let (here, there) = pair().expect("a socket pair");
            let tracked = TrackedFd::new(here, InChild::Replace);
            let mut client = Client::new(tracked).expect("a client");
            write(there, pieces, || client.poll().is_ok());
        }
        _ => {
            let (here, there) = pair().expect("a socket pair");
            let myself = nix::unistd::getpid().as_raw();
            let owner = os::pidfd_open(myself).expect("a pidfd");
            let report = owner.try_clone().expect("a copy");
            let mut seat =
                WorkerControl::new(1, here, report, owner, Duration::ZERO, None).expect("a seat");
            write(there, pieces, || seat.poll().is_ok());
        }
    }
}

fn write(there: OwnedFd, pieces: &[Piece], mut look: impl FnMut() -> bool) {
    let mut there = UnixStream::from(there);
    for (bytes, fds) in pieces {
        let raw = vec![there.as_raw_fd(); usize::from(*fds)];
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() || bytes.is_empty() {
            &rights[..0]
        } else {
            &rights[..]
        };
        let slices = [std::io::IoSlice::new(bytes)];
        let sent = sendmsg::<()>(
            there.as_raw_fd(),
            &slices,
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        if sent.is_err() || !look() {
            return;
        }
    }
    there.flush().ok();
    drop(there);
    look();
}

/// Reads messages until there is none; each must survive being sent on.
fn read<M: Serialize + DeserializeOwned + Debug>(pieces: &[Piece]) {
    let (here, there) = pair().expect("a socket pair");
    let mut channel = Channel::new(here).expect("a channel");
    write(there, pieces, || {
        loop {
            match channel.receive::<M>() {
                Ok(Received::Message(message, _)) => sent_on(&message),
                Ok(Received::Empty | Received::Closed) => return true,
                Err(_) => return false,
            }
        }
    });
}

fn sent_on<M: Serialize + DeserializeOwned + Debug>(message: &M) {
    let (here, there) = pair().expect("a socket pair");
    let mut here = Channel::new(here).expect("a channel");
    let mut there = Channel::new(there).expect("a channel");
    match here.send(message, Vec::new()) {
        Ok(()) => {}
        // Named fields take more room than numbered ones, which are read as well.
        Err(TransportError::TooLarge { .. }) => return,
        Err(error) => panic!("{error}"),
    }
    if here.has_output() {
        return; // longer than a socket holds
    }
    match there.receive::<M>() {
        Ok(Received::Message(again, _)) => assert_eq!(format!("{again:?}"), format!("{message:?}")),
        other => panic!("{message:?} became {other:?}"),
    }
}

/// A message of a link: nothing, or what is written as it was read.
pub fn control(kind: u8, bytes: &[u8]) {
    if let Some(message) = Control::decode(kind, bytes) {
        let (kind, bytes) = message.encode();
        assert_eq!(Control::decode(kind, &bytes), Some(message));
    }
}

/// One of each message, as its sender writes it: which reader it is for, and its frame.
pub fn examples() -> Vec<(u8, Vec<u8>)> {
    let (request, link) = (RequestId(3), LinkId(5));
    let worker = WorkerInfo { id: 1, pid: 4321 };
    let version = PROTOCOL_VERSION;
    let (module, why) = (String::from("a_module"), String::from("no reason"));
    let mut all = Vec::new();
    let mut add = |reader: u8, frame: Vec<u8>| all.push((reader, frame));
    add(0, frame(&FromClient::Hello { version }));
    add(
        0,
        frame(&FromClient::Acquire {
            request,
            max_workers: 2,
        }),
    );
    add(0, frame(&FromClient::Release { link, broken: true }));
    let (modules, paths) = (vec![module.clone()], vec!["/a/folder".into()]);
    add(0, frame(&FromClient::Preload { modules, paths }));
    for order in [
        Order::Status,
        Order::Drain { bound: Some(100) },
        Order::Restart,
        Order::Logs { follow: true },
        Order::Look(Question::Streams {
            known: vec![(1, 2)],
            detached: vec![(1, 3)],
        }),
    ] {
        add(0, frame(&FromClient::Admin(order)));
    }
    for reader in [1, 6] {
        let welcome = Welcome::default();
        add(reader, frame(&ToClient::Hello { version, welcome }));
        add(
            reader,
            frame(&ToClient::Status(Status {
                workers: vec![WorkerStatus::default()],
                clients: vec![ClientStatus::default()],
                ..Status::default()
            })),
        );
        let lines = vec!["a line".into()];
        add(reader, frame(&ToClient::Log { lines }));
        add(
            reader,
            frame(&ToClient::Looked(WorkerLook {
                links: vec![LinkLook {
                    streams: vec![StreamLook::default()],
                    ..LinkLook::default()
                }],
                ..WorkerLook::default()
            })),
        );
        add(reader, frame(&ToClient::Leaving { link }));
        add(reader, frame(&ToClient::Done));
        add(reader, frame(&ToClient::Unable { why: why.clone() }));
        add(reader, frame(&ToClient::TurnedAway { why: why.clone() }));
        add(
            reader,
            frame(&ToClient::Link {
                request,
                link,
                worker,
            }),
        );
        let reason = Refusal::Failed(why.clone());
        add(reader, frame(&ToClient::Refused { request, reason }));
        add(
            reader,
            frame(&ToClient::Refused {
                request,
                reason: Refusal::AtLimit,
            }),
        );
        add(reader, frame(&ToClient::Retired { link }));
        add(
            reader,
            frame(&ToClient::NotPreloaded {
                module: module.clone(),
                why: why.clone(),
            }),
        );
        add(
            reader,
            frame(&ToClient::Died {
                link,
                worker,
                exit: Exit::Signal(9),
                ran: Ran::Here,
                why: Some(Killed::Still { ms: 300 }),
                stack: "a stack".into(),
            }),
        );
    }
    add(
        2,
        frame(&ToZygote::Prepare {
            version,
            grace_ms: 500,
            outlive_ms: Some(700),
        }),
    );
    add(2, frame(&ToZygote::Spawn { worker: 1 }));
    add(
        2,
        frame(&ToZygote::Preload {
            module: module.clone(),
            paths: Vec::new(),
        }),
    );
    add(
        3,
        frame(&FromZygote::Ready {
            version,
            threads: 1,
        }),
    );
    add(
        3,
        frame(&FromZygote::Spawned {
            worker: 1,
            pid: 4321,
        }),
    );
    add(
        3,
        frame(&FromZygote::SpawnFailed {
            worker: 1,
            why: why.clone(),
        }),
    );
    let failure = Some(PreloadFailure::Import(why.clone()));
    add(3, frame(&FromZygote::Preloaded { module, failure }));
    add(
        3,
        frame(&FromZygote::Exited {
            worker: 1,
            pid: 4321,
            exit: Exit::Code(70),
        }),
    );
    for reader in [4, 7] {
        add(reader, frame(&ToWorker::Attach { link }));
        add(reader, frame(&ToWorker::Detach { link }));
        let question = Question::Inspect {
            stream: "5:7".into(),
            key: Some("ann".into()),
        };
        add(reader, frame(&ToWorker::Ask { ask: 9, question }));
        add(reader, frame(&ToWorker::Drain));
    }
    add(5, frame(&FromWorker::Started { thread: 77 }));
    add(5, frame(&FromWorker::Attached { link }));
    add(5, frame(&FromWorker::AttachFailed { link, why }));
    add(5, frame(&FromWorker::Detached { link }));
    let answer = "{}".into();
    add(5, frame(&FromWorker::Told { ask: 9, answer }));
    all
}

fn frame<M: Serialize>(message: &M) -> Vec<u8> {
    let (here, there) = pair().expect("a socket pair");
    let mut here = Channel::new(here).expect("a channel");
    here.send(message, Vec::new()).expect("it fits");
    drop(here);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut UnixStream::from(there), &mut bytes).expect("its bytes");
    bytes
}

/// What links show, in memory that somebody writes over.
struct Shown([u32; 16]);

impl Gauges for Shown {
    fn residents(&self, link: LinkId) -> u32 {
        self.0[link.0 as usize % self.0.len()]
    }

    fn opened(&self, link: LinkId) -> u64 {
        u64::from(self.residents(link)) << (link.0 % 32)
    }

    fn retire(&self, link: LinkId) -> bool {
        self.residents(link).is_multiple_of(2)
    }

    fn running(&self, link: LinkId) -> Option<Running> {
        let said = self.residents(link);
        (said % 3 == 1).then_some(Running {
            step: u64::from(said) << (link.0 % 40),
            slot: said,
            stream: said.into(),
            event: u64::MAX - u64::from(said),
            allowance: (said % 2 == 1).then_some(Allowance {
                time: Duration::from_millis(said.into()),
                setting: Setting::Event,
            }),
        })
    }

    fn progress(&self, link: LinkId) -> Progress {
        let step = self.residents(link).into();
        Progress {
            step,
            event: step / 2,
            looks: step / 3,
        }
    }

    fn input_waits(&self, link: LinkId) -> bool {
        self.residents(link).is_multiple_of(5)
    }

    fn stop_watching(&self, link: LinkId) -> bool {
        self.residents(link).is_multiple_of(7)
    }

    fn close(&self, _: LinkId) {}

    fn memory(&self, pid: i32) -> Option<u64> {
        let said = self.residents(LinkId(pid.unsigned_abs().into()));
        (said % 4 != 3).then(|| u64::from(said) << 20)
    }

    fn written(&self, worker: WorkerId) -> u64 {
        self.residents(LinkId(worker.into())).into()
    }
}

/// Tells a pool things in an order and with numbers that nobody vouches for. It must come to rest,
/// and answer no request twice.
pub fn pool(steps: &[[u8; 4]]) {
    let mut now = Instant::now();
    let settings = Settings {
        max: None,
        cores: 2,
        min: steps.first().map_or(0, |step| u32::from(step[3] % 3)),
        idle: Duration::from_millis(100),
        drain: Duration::from_millis(20),
        terminate: Duration::from_millis(10),
        client_workers: steps
            .first()
            .and_then(|step| (step[2] % 2 == 0).then(|| u32::from(step[2] % 5))),
    };
    let mut pool = Pool::new(settings);
    let mut shown = Shown([0; 16]);
    let mut answered = HashSet::new();
    let mut requests = 0;
    for &[what, a, b, c] in steps {
        let (worker, link, client) = (u32::from(a % 8), LinkId((b % 16).into()), u64::from(c % 3));
        match what % 17 {
            16 => {
                let stall = (b % 2 == 0).then(|| Duration::from_millis(u64::from(c) * 3));
                let memory = (b % 3 == 0).then(|| u64::from(c) << 22);
                pool.watch(now, client, link, Watch { stall, memory });
            }
            0 => pool.client_came(client, i32::from(a % 2)),
            1 | 2 => {
                requests += 1;
                pool.acquire(now, client, RequestId(requests), (a % 5).into());
            }
            3 => pool.release(now, client, link, c % 2 == 0),
            4 => pool.client_gone(now, client),
            5 => drop(pool.spawned(now, worker, i32::from(b))),
            6 => pool.started(now, worker),
            7 => pool.attached(now, worker, link),
            8 => pool.attach_failed(now, worker, link, "it says so".into()),
            9 => pool.detached(now, worker),
            10 => pool.spawn_failed(now, worker, "it says so".into()),
            11 => pool.hung_up(now, worker),
            12 => pool.ended(now, worker, b % 2 == 0),
            13 => pool.exited(now, worker, Exit::Code(b.into())),
            14 => shown.0[usize::from(a % 16)] = u32::from_le_bytes([b, c, b, c]),
            _ if b == 255 => pool.shut_down(now, Duration::from_millis(c.into())),
            _ if b == 254 => pool.give_up("no reason"),
            _ if b == 253 => pool.zygote_lost(),
            _ if b == 252 => pool.drain(),
            _ if b > 240 => pool.retire_all(),
            _ => now += Duration::from_millis(u64::from(a) * 7),
        }
        let mut rounds = 0;
        loop {
            let actions = pool.reconcile(now, &shown);
            if actions.is_empty() {
                break;
            }
            rounds += 1;
            assert!(rounds < 100, "it does not come to rest: {actions:?}");
            for action in actions {
                if let Action::Deliver { request, .. } | Action::Refuse { request, .. } = action {
                    assert!(answered.insert(request), "{request:?} was answered twice");
                }
            }
        }
        pool.next_deadline();
        assert!(pool.len() <= 2048);
    }
}

#[test]
fn every_message_is_read_by_who_it_is_for() {
    for (reader, bytes) in examples() {
        converse(reader, &[(bytes, 0)]);
    }
}

#[test]
fn a_pool_comes_to_rest_whatever_it_is_told() {
    for seed in 0..200u32 {
        let steps: Vec<[u8; 4]> = (0..256u32)
            .map(|step| {
                (seed * 256 + step)
                    .wrapping_mul(2_654_435_761)
                    .rotate_left(seed % 32)
                    .to_le_bytes()
            })
            .collect();
        pool(&steps);
    }
}
