//! What runs inside a worker process: its end of the control socket, and the watchdog that ends the
//! process when those it serves are gone. It never touches an event and never decides when to
//! stop; it passes on what the supervisor says.
//!
//! A worker of an embedded supervisor ends with it, since that is its only client. One of a
//! standalone supervisor outlives it, and ends when the clients of its links are gone too.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use velo_shm::fork::SharedFd;
use velo_shm::{Link, Side};

use crate::error::WorkerControlError;
use crate::os;
use crate::wire::link;
use crate::wire::protocol::{FromWorker, Key, LinkId, Question, ToWorker};
use crate::wire::transport::{Channel, Received, TransportError};

/// The exit code of a worker that its watchdog ended.
pub const ABANDONED_EXIT_CODE: i32 = 125;

/// A worker's place: who it is, and its line to the supervisor.
#[derive(Debug)]
pub struct WorkerControl {
    worker: u32,
    /// A child of this worker has no part in what it says: dropped before the socket.
    _shared: SharedFd,
    channel: Channel<OwnedFd>,
    report: OwnedFd,
    /// The supervisor's process.
    owner: OwnedFd,
    /// Pidfds of the clients of the links that there are, where they are told.
    clients: Clients,
    grace: Duration,
    /// It goes on without the supervisor, for as long as it has clients that have had a stream open
    /// within this time.
    outlive: Option<Duration>,
    started: bool,
}

/// Shared with the watchdog.
type Clients = Arc<Mutex<BTreeMap<LinkId, OwnedFd>>>;

fn lock(clients: &Clients) -> MutexGuard<'_, BTreeMap<LinkId, OwnedFd>> {
    // Each change is one call, so a panic leaves nothing half-changed.
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the supervisor wants of a worker.
#[derive(Debug)]
pub enum WorkerControlEvent {
    /// Serve this link.
    Attach {
        /// Its identity.
        link: LinkId,
        /// The worker's end of it.
        end: Link,
    },
    /// The client has released the link: cancel what is left on it, let go of it, and say so with
    /// [`WorkerControl::detached`].
    Detach {
        /// The link.
        link: LinkId,
    },
    /// A question, to be answered at once by [`WorkerControl::tell`].
    Ask {
        /// The number of the question.
        ask: u64,
        /// The question.
        question: Question,
    },
    /// Finish or cancel all streams, then exit with 0. There is a bound, and then a signal.
    Drain,
    /// The attachment with this number has ended: say with [`WorkerControl::key_free`] when it is
    /// over, or at once if there is none.
    ReleaseKey {
        /// The session that it is attached to.
        key: Key,
        /// Its number.
        grant: u64,
    },
    /// End the input of each session as soon as it is detached.
    Retire,
    /// The supervisor is gone: exit. The watchdog ends a process that does not.
    Lost,
    /// The supervisor is gone, and this worker outlives it: serve the links that there are until
    /// their clients are gone, which [`WorkerControl::client_fd`] shows, or until no stream was open for
    /// [`WorkerControl::outlive`]; then exit. The watchdog ends a process whose clients are all gone.
    Orphaned,
}

impl WorkerControl {
    pub(crate) fn new(
        worker: u32,
        control: OwnedFd,
        report: OwnedFd,
        owner: OwnedFd,
        grace: Duration,
        outlive: Option<Duration>,
    ) -> io::Result<Self> {
        Ok(Self {
            worker,
            _shared: SharedFd::new(control.as_fd()),
            channel: Channel::new(control)?,
            report,
            owner,
            clients: Clients::default(),
            grace,
            outlive,
            started: false,
        })
    }

    /// Readable when [`WorkerControl::poll`] has messages.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Where this worker writes its stacks when it dies, for its supervisor to read.
    pub fn report(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// The signal at which this worker is to write the stacks of its threads into its report. The
    /// watchdog takes it if no other thread does: block it in those, so that a system call that one of
    /// them is stuck in is not interrupted.
    pub fn stacks_signal(&self) -> i32 {
        os::stacks_signal()
    }

    /// The supervisor's name for this worker.
    pub fn worker(&self) -> u32 {
        self.worker
    }

    /// What the supervisor has said since the last call. Never waits. The first call tells the
    /// supervisor that this worker has started, so make it when the worker is ready to serve, in the
    /// thread that is going to.
    ///
    /// # Errors
    ///
    /// When the control socket breaks. The worker should end then.
    pub fn poll(&mut self) -> Result<Vec<WorkerControlEvent>, WorkerControlError> {
        let mut events = Vec::new();
        let outcome = self.poll_into(&mut events);
        match outcome {
            Ok(()) => Ok(events),
            Err(TransportError::Closed) => {
                events.push(match self.outlive.is_some() {
                    true => WorkerControlEvent::Orphaned,
                    false => WorkerControlEvent::Lost,
                });
                Ok(events)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn poll_into(&mut self, events: &mut Vec<WorkerControlEvent>) -> Result<(), TransportError> {
        if !self.started {
            self.started = true;
            let thread = os::this_thread();
            self.channel
                .send(&FromWorker::Started { thread }, Vec::new())?;
        }
        self.channel.flush()?;
        loop {
            match self.channel.receive()? {
                Received::Message(ToWorker::Attach { link }, fds) => {
                    match link::received(Side::Worker, fds)? {
                        Ok((end, client)) => {
                            if let Some(client) = client {
                                lock(&self.clients).insert(link, client);
                            }
                            self.channel
                                .send(&FromWorker::Attached { link }, Vec::new())?;
                            events.push(WorkerControlEvent::Attach { link, end });
                        }
                        Err(why) => {
                            self.channel
                                .send(&FromWorker::AttachFailed { link, why }, Vec::new())?;
                        }
                    }
                }
                Received::Message(ToWorker::Detach { link }, _) => {
                    events.push(WorkerControlEvent::Detach { link });
                }
                Received::Message(ToWorker::Ask { ask, question }, _) => {
                    events.push(WorkerControlEvent::Ask { ask, question });
                }
                Received::Message(ToWorker::Drain, _) => events.push(WorkerControlEvent::Drain),
                Received::Message(ToWorker::ReleaseKey { key, grant }, _) => {
                    events.push(WorkerControlEvent::ReleaseKey { key, grant });
                }
                Received::Message(ToWorker::Retire, _) => events.push(WorkerControlEvent::Retire),
                Received::Empty => return Ok(()),
                Received::Closed => return Err(TransportError::Closed),
            }
        }
    }

    /// Whether the worker is a standalone supervisor's, which several programs may use.
    pub fn is_shared(&self) -> bool {
        self.outlive.is_some()
    }

    /// How long an orphaned worker stays that no stream is open on; none where it ends with its
    /// supervisor.
    pub fn outlive(&self) -> Option<Duration> {
        self.outlive
    }

    /// A pidfd of the client of a link, readable when it has ended, where the supervisor has told.
    /// It is open until [`WorkerControl::detached`].
    pub fn client_fd(&self, link: LinkId) -> Option<RawFd> {
        lock(&self.clients).get(&link).map(AsRawFd::as_raw_fd)
    }

    /// Tells the supervisor that a detached link is no longer in use here.
    ///
    /// # Errors
    ///
    /// When the control socket breaks. A supervisor that is gone is no error here:
    /// [`WorkerControl::poll`] tells.
    pub fn detached(&mut self, link: LinkId) -> Result<(), WorkerControlError> {
        lock(&self.clients).remove(&link);
        self.say(&FromWorker::Detached { link })
    }

    /// Answers a question, with JSON of [`MOST_TOLD`](Self::MOST_TOLD) bytes at most.
    ///
    /// # Errors
    ///
    /// As [`WorkerControl::detached`], and when the answer is too long.
    pub fn tell(&mut self, ask: u64, answer: String) -> Result<(), WorkerControlError> {
        self.say(&FromWorker::Told { ask, answer })
    }

    /// Tells the supervisor that an attachment is over, and whether what it was attached to is still
    /// kept.
    ///
    /// # Errors
    ///
    /// As [`WorkerControl::detached`].
    pub fn key_free(&mut self, key: Key, grant: u64, live: bool) -> Result<(), WorkerControlError> {
        self.say(&FromWorker::Key { key, grant, live })
    }

    /// The longest answer, in bytes.
    pub const MOST_TOLD: usize = 512 << 10;

    fn say(&mut self, message: &FromWorker) -> Result<(), WorkerControlError> {
        match self.channel.send(message, Vec::new()) {
            Ok(()) | Err(TransportError::Closed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts the thread that ends this process when those it serves are gone: it waits for the
    /// supervisor's death or for the end of the control socket, and where this worker outlives that
    /// for the clients' deaths too, gives the process a short grace to end by itself, and exits with
    /// [`ABANDONED_EXIT_CODE`]. It works while the worker is stuck in native code,
    /// and reads nothing from the control socket. Call it once.
    ///
    /// Where no thread can be started, the zygote is the one that ends this process.
    pub fn start_watchdog(&self) {
        let watch = || -> io::Result<()> {
            let owner = self.owner.try_clone()?;
            let control = self.channel.fd().try_clone()?;
            let shared = SharedFd::new(control.as_fd());
            let grace = self.grace;
            let clients = self.outlive.map(|_| self.clients.clone());
            thread::Builder::new()
                .name("velo-watchdog".into())
                .stack_size(64 << 10)
                .spawn(move || {
                    let _shared = shared;
                    watch_over(&owner, &control, clients.as_ref(), grace);
                })
                .map(drop)
        };
        if let Err(error) = watch() {
            tracing::warn!(worker = self.worker, %error, "this worker has no watchdog");
        }
    }
}

fn watch_over(owner: &OwnedFd, control: &OwnedFd, clients: Option<&Clients>, grace: Duration) {
    os::block_signals();
    // The other threads are not to be disturbed in what they are stuck in.
    os::unblock_stacks_signal();
    // Data on the control socket is not asked about; its hang-up is reported unasked.
    loop {
        let mut fds = [
            PollFd::new(owner.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PEER_CLOSED),
        ];
        if matches!(poll(&mut fds, PollTimeout::NONE), Ok(n) if n > 0) {
            break;
        }
    }
    if let Some(clients) = clients {
        wait_for_the_end_of(clients);
    }
    thread::sleep(grace);
    // SAFETY: `_exit` runs no code of this process; whatever state its threads are in, it ends.
    unsafe { libc::_exit(ABANDONED_EXIT_CODE) }
}

/// Waits until all of these processes have ended. None is added any more: it is the supervisor who
/// brings clients.
fn wait_for_the_end_of(clients: &Clients) {
    let copies: Vec<_> = lock(clients).values().map(OwnedFd::try_clone).collect();
    for client in copies.into_iter().flatten() {
        while !matches!(
            poll(&mut [PollFd::new(client.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE),
            Ok(n) if n > 0
        ) {}
    }
}

/// The other side has closed, even while data is still to be read.
#[cfg(target_os = "linux")]
const PEER_CLOSED: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);
#[cfg(not(target_os = "linux"))]
const PEER_CLOSED: PollFlags = PollFlags::empty();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::transport;

    fn seat() -> (WorkerControl, Channel<OwnedFd>) {
        let (here, there) = transport::pair().expect("a socketpair");
        let owner = os::pidfd_open(nix::unistd::getpid().as_raw()).expect("a pidfd");
        let report = owner.try_clone().expect("a descriptor");
        let seat =
            WorkerControl::new(5, here, report, owner, Duration::ZERO, None).expect("a seat");
        (seat, Channel::new(there).expect("a channel"))
    }

    fn said(supervisor: &mut Channel<OwnedFd>) -> Vec<FromWorker> {
        let mut all = Vec::new();
        while let Ok(Received::Message(message, _)) = supervisor.receive() {
            all.push(message);
        }
        all
    }

    #[test]
    fn the_first_look_says_that_it_has_started() {
        let (mut seat, mut supervisor) = seat();
        assert!(said(&mut supervisor).is_empty());
        assert!(seat.poll().expect("poll").is_empty());
        assert!(seat.poll().expect("poll").is_empty());
        assert!(matches!(
            said(&mut supervisor)[..],
            [FromWorker::Started { .. }]
        ));
    }

    #[test]
    fn orders_come_in_order_and_then_the_end() {
        let (mut seat, mut supervisor) = seat();
        supervisor
            .send(&ToWorker::Detach { link: LinkId(2) }, Vec::new())
            .expect("send");
        supervisor.send(&ToWorker::Drain, Vec::new()).expect("send");
        assert!(matches!(
            seat.poll().expect("poll")[..],
            [
                WorkerControlEvent::Detach { link: LinkId(2) },
                WorkerControlEvent::Drain
            ]
        ));
        seat.detached(LinkId(2)).expect("tell");
        let all = said(&mut supervisor);
        assert!(matches!(
            all.last(),
            Some(FromWorker::Detached { link: LinkId(2) })
        ));
        drop(supervisor);
        assert!(matches!(
            seat.poll().expect("poll")[..],
            [WorkerControlEvent::Lost]
        ));
        seat.detached(LinkId(3))
            .expect("no error, the end was told");
    }

    #[test]
    fn one_that_outlives_its_supervisor_is_told_that_it_is_an_orphan() {
        let (here, there) = transport::pair().expect("a socketpair");
        let owner = os::pidfd_open(nix::unistd::getpid().as_raw()).expect("a pidfd");
        let report = owner.try_clone().expect("a descriptor");
        let patience = Some(Duration::from_secs(3));
        let mut seat =
            WorkerControl::new(5, here, report, owner, Duration::ZERO, patience).expect("a seat");
        assert_eq!(seat.outlive(), patience);
        drop(there);
        assert!(matches!(
            seat.poll().expect("poll")[..],
            [WorkerControlEvent::Orphaned]
        ));
    }

    #[test]
    fn the_watchdog_waits_for_every_client() {
        let clients = Clients::default();
        let mut processes: Vec<_> = (0..2)
            .map(|_| {
                let child = std::process::Command::new("sleep").arg("60").spawn();
                child.expect("a process")
            })
            .collect();
        for (number, child) in (0..).zip(&processes) {
            let pid = i32::try_from(child.id()).expect("a pid");
            let pidfd = os::pidfd_open(pid).expect("a pidfd");
            lock(&clients).insert(LinkId(number), pidfd);
        }
        let waiting = thread::spawn(move || wait_for_the_end_of(&clients));
        for child in &mut processes {
            assert!(!waiting.is_finished(), "one of them lives");
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
        waiting.join().expect("it has seen both ends");
    }

    #[test]
    fn a_link_that_cannot_be_mapped_is_told_and_survived() {
        let (mut seat, mut supervisor) = seat();
        let (one, two) = transport::pair().expect("a socketpair");
        let three = one.try_clone().expect("a copy");
        let message = ToWorker::Attach { link: LinkId(1) };
        supervisor
            .send(&message, vec![one, two, three])
            .expect("send");
        assert!(seat.poll().expect("poll").is_empty());
        let all = said(&mut supervisor);
        assert!(
            matches!(&all[..], [_, FromWorker::AttachFailed { link: LinkId(1), why }] if why.contains("memory"))
        );
    }
}
