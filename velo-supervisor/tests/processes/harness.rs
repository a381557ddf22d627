//! What the tests need to act as a client: options, waiting with a deadline, talking over a link,
//! and looking at processes.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use velo_shm::{Consumer, Link, Producer};
use velo_supervisor::{
    Client, ClientEvent, EmbeddedOptions, LinkId, RequestId, Status, WorkerInfo, embedded,
};

use crate::worker::{KIND, LIMITS, MODE_ENV, SLOT};

/// Longer than anything here takes on a slow machine, shorter than a test may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn options() -> EmbeddedOptions {
    in_mode("")
}

/// Options for zygotes and workers that behave in this way.
pub fn in_mode(mode: &str) -> EmbeddedOptions {
    let this = std::env::current_exe().expect("the test's own program");
    let mut options = EmbeddedOptions::new([this]);
    options.env = vec![(MODE_ENV.into(), mode.into())];
    options
}

/// Looks again and again until something is there.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process is there; one that only waits to be collected is not.
pub fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim().chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

pub fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
}

/// The children of this process, by any of its threads.
pub fn children() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads of this process");
    tasks
        .flatten()
        .flat_map(|task| {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

/// Waits until no child is left: a shutdown with a short bound may be over before they are collected.
pub fn no_children() {
    wait_for("the children to go", || children().is_empty().then_some(()));
}

/// The state of the embedded supervisor, even if its thread needs longer than one look takes.
pub fn status() -> Status {
    wait_for("an answer of the supervisor", embedded::status)
}

/// The descriptors of this process, by what they are.
pub fn descriptors() -> Vec<String> {
    let mut all: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .expect("descriptors of this process")
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| !target.starts_with("/proc/"))
        .collect();
    all.sort();
    all
}

/// A worker that a client has a link to.
pub struct Linked {
    pub link: LinkId,
    pub worker: WorkerInfo,
    pub end: Link,
    rings: Option<(Producer, Consumer)>,
}

impl Linked {
    /// Sends a message over the link's ring.
    pub fn send(&mut self, message: &[u8]) {
        let (producer, _) = self.rings();
        let mut room = producer.reserve(message.len(), true).expect("room");
        room[..message.len()].copy_from_slice(message);
        room.commit(KIND, message.len());
        producer.publish();
        self.end.notify(SLOT);
    }

    /// Takes the answer, if it is there.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let (_, consumer) = self.rings();
        let payload = consumer.peek().expect("an honest worker")?.payload.to_vec();
        consumer.release();
        consumer.publish();
        Some(payload)
    }

    /// Sends a message and waits until it comes back.
    pub fn echo(&mut self, message: &[u8]) {
        self.send(message);
        let answer = wait_for("an answer over the ring", || self.receive());
        assert_eq!(answer, message);
    }

    fn rings(&mut self) -> &mut (Producer, Consumer) {
        let end = &self.end;
        self.rings
            .get_or_insert_with(|| end.open_slot(SLOT, LIMITS).expect("a slot"))
    }
}

/// A client that keeps what it was told until a test asks for it.
pub struct Peer {
    pub client: Client,
    pub events: VecDeque<ClientEvent>,
}

impl Peer {
    pub fn connect(options: &EmbeddedOptions) -> Self {
        let client = embedded::connect(options).expect("a supervisor");
        Self {
            client,
            events: VecDeque::new(),
        }
    }

    /// The first event that fits; the others stay.
    pub fn wait<T>(&mut self, what: &str, fits: impl Fn(&ClientEvent) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self
                .events
                .iter()
                .enumerate()
                .find_map(|(at, event)| Some((at, fits(event)?)));
            if let Some((at, found)) = found {
                self.events.remove(at);
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "not told: {what}; told: {:?}",
                self.events
            );
            let mut fds = [PollFd::new(self.client.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(100_u8));
            self.events
                .extend(self.client.poll().expect("the control socket holds"));
        }
    }

    pub fn acquire(&mut self, max_workers: u32) -> RequestId {
        self.client.acquire(max_workers).expect("a supervisor")
    }

    pub fn answer(&mut self, wanted: RequestId) -> Linked {
        let found = self.wait("a link", |event| match event {
            ClientEvent::Link {
                request,
                link,
                worker,
                end,
                ..
            } if *request == wanted => Some(Ok((*link, *worker, end.clone()))),
            ClientEvent::Refused { request, reason } if *request == wanted => {
                Some(Err(reason.clone()))
            }
            _ => None,
        });
        let (link, worker, end) = found.unwrap_or_else(|reason| panic!("refused: {reason}"));
        Linked {
            link,
            worker,
            end,
            rings: None,
        }
    }

    pub fn link(&mut self, max_workers: u32) -> Linked {
        let request = self.acquire(max_workers);
        self.answer(request)
    }

    /// A link with an open stream, which keeps it; where the idle timeout is short, a link may be
    /// gone before its first stream.
    pub fn link_in_use(&mut self, max_workers: u32) -> Linked {
        loop {
            let linked = self.link(max_workers);
            if linked.end.enter() {
                return linked;
            }
        }
    }

    pub fn refusal(&mut self, wanted: RequestId) -> velo_supervisor::Refusal {
        self.wait("a refusal", |event| match event {
            ClientEvent::Refused { request, reason } if *request == wanted => Some(reason.clone()),
            _ => None,
        })
    }

    pub fn death(&mut self, wanted: LinkId) -> (WorkerInfo, velo_supervisor::Exit) {
        self.wait("a death", |event| match event {
            ClientEvent::WorkerDied {
                link, worker, exit, ..
            } if *link == wanted => Some((*worker, *exit)),
            _ => None,
        })
    }

    pub fn lost(&mut self) {
        self.wait("the supervisor's end", |event| {
            matches!(event, ClientEvent::Lost).then_some(())
        });
    }
}

/// All processes of the embedded supervisor.
pub fn processes() -> HashMap<&'static str, Vec<i32>> {
    let status = status();
    HashMap::from([
        ("zygote", status.zygote.into_iter().collect()),
        (
            "workers",
            status.workers.iter().map(|worker| worker.pid).collect(),
        ),
    ])
}
