//! What runs inside a worker process: its end of the control socket, and the watchdog that ends the
//! process when the one it serves is gone. It never touches an event and never decides when to
//! stop; it passes on what the supervisor says.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use velo_shm::{LinkEnd, Side};

use crate::error::SeatError;
use crate::link;
use crate::protocol::{FromWorker, LinkId, ToWorker};
use crate::sys;
use crate::transport::{Channel, Received, TransportError, exactly};

/// The exit code of a worker that its watchdog ended.
pub const ABANDONED_EXIT_CODE: i32 = 125;

/// A worker's place: who it is, and its line to the supervisor.
#[derive(Debug)]
pub struct Seat {
    worker: u32,
    channel: Channel<OwnedFd>,
    report: OwnedFd,
    /// The process whose death ends this one.
    owner: OwnedFd,
    grace: Duration,
    started: bool,
}

/// What the supervisor wants of a worker.
#[derive(Debug)]
pub enum SeatEvent {
    /// Serve this link.
    Attach {
        /// Its identity.
        link: LinkId,
        /// The worker's end of it.
        end: Arc<LinkEnd>,
    },
    /// Nobody uses the link any more: cancel what is left on it, let go of it, and say so with
    /// [`Seat::detached`].
    Detach {
        /// The link.
        link: LinkId,
    },
    /// Finish or cancel all streams, then exit with 0. There is a bound, and then a signal.
    Drain,
    /// The supervisor is gone: exit. The watchdog ends a process that does not.
    Lost,
}

impl Seat {
    pub(crate) fn new(
        worker: u32,
        control: OwnedFd,
        report: OwnedFd,
        owner: OwnedFd,
        grace: Duration,
    ) -> io::Result<Self> {
        Ok(Self {
            worker,
            channel: Channel::new(control)?,
            report,
            owner,
            grace,
            started: false,
        })
    }

    /// Readable when [`Seat::poll`] has something to say.
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
        sys::stacks_signal()
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
    pub fn poll(&mut self) -> Result<Vec<SeatEvent>, SeatError> {
        let mut events = Vec::new();
        let outcome = self.poll_into(&mut events);
        match outcome {
            Ok(()) => Ok(events),
            Err(TransportError::Closed) => {
                events.push(SeatEvent::Lost);
                Ok(events)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn poll_into(&mut self, events: &mut Vec<SeatEvent>) -> Result<(), TransportError> {
        if !self.started {
            self.started = true;
            let thread = sys::this_thread();
            self.channel
                .send(&FromWorker::Started { thread }, Vec::new())?;
        }
        self.channel.flush()?;
        loop {
            match self.channel.receive()? {
                Received::Message(ToWorker::Attach { link }, fds) => {
                    let attached = match exactly(fds) {
                        Ok([segment, mine, theirs]) => {
                            link::attach(Side::Worker, segment, mine, theirs)
                        }
                        Err(lost @ TransportError::FdsLost) => Err(lost.to_string()),
                        Err(error) => return Err(error),
                    };
                    match attached {
                        Ok(end) => {
                            self.channel
                                .send(&FromWorker::Attached { link }, Vec::new())?;
                            events.push(SeatEvent::Attach { link, end });
                        }
                        Err(why) => {
                            self.channel
                                .send(&FromWorker::AttachFailed { link, why }, Vec::new())?;
                        }
                    }
                }
                Received::Message(ToWorker::Detach { link }, _) => {
                    events.push(SeatEvent::Detach { link });
                }
                Received::Message(ToWorker::Drain, _) => events.push(SeatEvent::Drain),
                Received::Empty => return Ok(()),
                Received::Closed => return Err(TransportError::Closed),
            }
        }
    }

    /// Tells the supervisor that a detached link is no longer in use here.
    ///
    /// # Errors
    ///
    /// When the control socket breaks. A supervisor that is gone is no error here:
    /// [`Seat::poll`] tells.
    pub fn detached(&mut self, link: LinkId) -> Result<(), SeatError> {
        match self
            .channel
            .send(&FromWorker::Detached { link }, Vec::new())
        {
            Ok(()) | Err(TransportError::Closed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts the thread that ends this process when its client is gone: it waits for the client's
    /// death or for the end of the control socket, gives the process a short grace to end by itself,
    /// and exits with [`ABANDONED_EXIT_CODE`]. It works while the worker is stuck in native code,
    /// and reads nothing from the control socket. Call it once.
    ///
    /// Where no thread can be started, the zygote is the one that ends this process.
    pub fn start_watchdog(&self) {
        let watch = || -> io::Result<()> {
            let owner = self.owner.try_clone()?;
            let control = self.channel.fd().try_clone()?;
            let grace = self.grace;
            thread::Builder::new()
                .name("velo-watchdog".into())
                .stack_size(64 << 10)
                .spawn(move || watch_over(&owner, &control, grace))
                .map(drop)
        };
        if let Err(error) = watch() {
            tracing::warn!(worker = self.worker, %error, "this worker has no watchdog");
        }
    }
}

fn watch_over(owner: &OwnedFd, control: &OwnedFd, grace: Duration) {
    sys::block_signals();
    // The other threads are not to be disturbed in what they are stuck in.
    sys::unblock_stacks_signal();
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
    thread::sleep(grace);
    // SAFETY: `_exit` runs no code of this process; whatever state its threads are in, it ends.
    unsafe { libc::_exit(ABANDONED_EXIT_CODE) }
}

/// The other side has closed, even while data is still to be read.
#[cfg(target_os = "linux")]
const PEER_CLOSED: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);
#[cfg(not(target_os = "linux"))]
const PEER_CLOSED: PollFlags = PollFlags::empty();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport;

    fn seat() -> (Seat, Channel<OwnedFd>) {
        let (here, there) = transport::pair().expect("a socketpair");
        let owner = sys::pidfd_open(nix::unistd::getpid().as_raw()).expect("a pidfd");
        let report = owner.try_clone().expect("a descriptor");
        let seat = Seat::new(5, here, report, owner, Duration::ZERO).expect("a seat");
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
            [SeatEvent::Detach { link: LinkId(2) }, SeatEvent::Drain]
        ));
        seat.detached(LinkId(2)).expect("tell");
        let all = said(&mut supervisor);
        assert!(matches!(
            all.last(),
            Some(FromWorker::Detached { link: LinkId(2) })
        ));
        drop(supervisor);
        assert!(matches!(seat.poll().expect("poll")[..], [SeatEvent::Lost]));
        seat.detached(LinkId(3))
            .expect("no error, the end was told");
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
