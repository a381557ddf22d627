//! What runs inside the zygote: a single-threaded process that has imported what workers need, and
//! forks them. It starts no thread, knows no link, and decides nothing: it forks when it is told to,
//! and ends with the process that it serves.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use nix::libc;
use velo_shm::fork::{self, SharedFd};

use crate::error::ZygoteError;
use crate::options::FOREVER;
use crate::os;
use crate::os::exit::Exit;
use crate::os::limits::explain;
use crate::wire::protocol::{
    FromZygote, PROTOCOL_VERSION, PreloadFailure, ToZygote, ZYGOTE_FD_ENV,
};
use crate::wire::transport::{Channel, Received, TransportError, exactly};
use crate::worker_control::{ABANDONED_EXIT_CODE, WorkerControl};

/// How long killed workers may take to disappear before the zygote ends without them.
const REAP_BOUND: Duration = Duration::from_secs(2);

/// What a process is when [`serve`] returns.
#[derive(Debug)]
pub enum Role {
    /// A newly forked worker: run it, then exit.
    Worker(WorkerControl),
    /// The zygote, with nothing left to do: exit with 0.
    Done,
}

/// The descriptor that [`ZYGOTE_FD_ENV`] names.
///
/// # Errors
///
/// [`ZygoteError::NoSupervisor`] when the variable does not name an open socket.
///
/// # Safety
///
/// The descriptor must not be owned by anything else: call this at most once, in a process that a
/// supervisor has started.
pub unsafe fn inherited_fd() -> Result<OwnedFd, ZygoteError> {
    let number: RawFd = std::env::var(ZYGOTE_FD_ENV)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|number| *number > 2)
        .ok_or(ZygoteError::NoSupervisor)?;
    // SAFETY: the descriptor is only borrowed for one look at what it is.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    match nix::sys::socket::getsockopt(&borrowed, nix::sys::socket::sockopt::SockType) {
        Ok(_) => {}
        Err(Errno::EBADF | Errno::ENOTSOCK) => return Err(ZygoteError::NoSupervisor),
        Err(refused) => {
            // A sandbox may refuse the question itself.
            return Err(io_error("ask what its control socket is (`getsockopt`)")(
                refused.into(),
            ));
        }
    }
    // SAFETY: it is open, and by this function's contract nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Serves the supervisor on `fd` until it is gone. `fork` forks the process as the host language
/// wants it done, and gives 0 in the child, where this function returns [`Role::Worker`]; in the
/// zygote it returns [`Role::Done`] at the end, after all workers have ended. `preload` imports a
/// module, which is looked for in some folders too, or says why it cannot.
///
/// `SIGINT` and `SIGTERM` are ignored from here on: a zygote ends with its supervisor, not with a
/// Ctrl-C. Workers ignore `SIGINT` alone.
///
/// # Errors
///
/// When the control socket breaks or the supervisor speaks another version. Workers are ended first.
pub fn serve(
    fd: OwnedFd,
    fork: impl FnMut() -> io::Result<i32>,
    preload: impl FnMut(&str, &[OsString]) -> Result<(), String>,
) -> Result<Role, ZygoteError> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        os::ignore_signal(signal).map_err(io_error("ignore a signal"))?;
    }
    sees_its_end()?;
    let shared = SharedFd::new(fd.as_fd());
    let channel = Channel::new(fd).map_err(io_error("set up its control socket"))?;
    let mut zygote = Zygote {
        _shared: shared,
        born: fork::generation(),
        channel,
        owner: None,
        children: Vec::new(),
        grace: Duration::ZERO,
        outlive: None,
        tainted: false,
    };
    let outcome = zygote.serve(fork, preload);
    if !matches!(outcome, Ok(Some(_))) {
        zygote.wind_down();
    }
    Ok(outcome?.map_or(Role::Done, Role::Worker))
}

#[derive(Debug)]
struct Child {
    worker: u32,
    pid: Pid,
    pidfd: OwnedFd,
}

#[derive(Debug)]
struct Zygote {
    /// What is forked from here has no part in the conversation: dropped before the socket.
    _shared: SharedFd,
    /// In which generation of forks it is.
    born: u32,
    channel: Channel<OwnedFd>,
    /// The process whose death ends this one.
    owner: Option<OwnedFd>,
    children: Vec<Child>,
    grace: Duration,
    /// Workers go on without the supervisor, for as long as they have clients that have had a stream
    /// open within this time.
    outlive: Option<Duration>,
    /// A preloaded module has started threads: no worker is forked any more.
    tainted: bool,
}

/// What a forked child needs of its parent.
struct Birth {
    worker: u32,
    control: OwnedFd,
    report: OwnedFd,
}

impl Zygote {
    /// A seat in a forked worker; nothing in the zygote when its supervisor is gone.
    fn serve(
        &mut self,
        mut fork: impl FnMut() -> io::Result<i32>,
        mut preload: impl FnMut(&str, &[OsString]) -> Result<(), String>,
    ) -> Result<Option<WorkerControl>, ZygoteError> {
        loop {
            loop {
                match self.channel.receive() {
                    // The module before it is to blame for the threads, not this one: the zygote that
                    // replaces this one imports it.
                    Ok(Received::Message(ToZygote::Preload { .. }, _)) if self.tainted => {}
                    Ok(Received::Message(ToZygote::Preload { module, paths }, _)) => {
                        // An import may take for ever, and nobody is left then to say when.
                        os::when_orphaned(Signal::SIGKILL).map_err(io_error("import"))?;
                        if self.is_abandoned() {
                            return Ok(None);
                        }
                        let imported = preload(&module, &paths);
                        if fork::generation() != self.born {
                            // The module has forked, and the child does not know where to go.
                            // SAFETY: `_exit` runs no code of this process.
                            unsafe { libc::_exit(ABANDONED_EXIT_CODE) };
                        }
                        sees_its_end()?;
                        self.preloaded(module, imported)?;
                    }
                    Ok(Received::Message(message, fds)) => {
                        if let Some(birth) = self.obey(message, fds, &mut fork)? {
                            return self.become_worker(birth).map(Some);
                        }
                    }
                    Ok(Received::Empty) => break,
                    Ok(Received::Closed) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            }
            if self.is_abandoned() {
                return Ok(None);
            }
            self.reap();
            match self.channel.flush() {
                Ok(()) => {}
                Err(TransportError::Closed) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            self.wait(PollTimeout::NONE)
                .map_err(io_error("wait for its supervisor"))?;
        }
    }

    /// Whether the process that it serves has ended.
    fn is_abandoned(&self) -> bool {
        let owner = self.owner.as_ref();
        owner.is_some_and(|owner| os::is_readable(owner.as_fd()))
    }

    fn obey(
        &mut self,
        message: ToZygote,
        fds: Vec<OwnedFd>,
        fork: &mut impl FnMut() -> io::Result<i32>,
    ) -> Result<Option<Birth>, ZygoteError> {
        match message {
            ToZygote::Prepare {
                version,
                grace_ms,
                outlive_ms,
            } => {
                let ready = FromZygote::Ready {
                    version: PROTOCOL_VERSION,
                    threads: os::thread_count(),
                };
                self.tell(&ready, Vec::new())?;
                if version != PROTOCOL_VERSION {
                    let ours = PROTOCOL_VERSION;
                    return Err(ZygoteError::Version {
                        theirs: version,
                        ours,
                    });
                }
                let [owner] = exactly(fds)?;
                self.owner = Some(owner);
                self.grace = Duration::from_millis(grace_ms.into());
                self.outlive = outlive_ms.map(Duration::from_millis);
                Ok(None)
            }
            ToZygote::Preload { .. } => Ok(None), // handled where it arrives
            // Its supervisor is about to replace it, and asks the next one.
            ToZygote::Spawn { .. } if self.tainted => Ok(None),
            ToZygote::Spawn { worker } => {
                if self.owner.is_none() {
                    return Err(ZygoteError::Protocol(
                        "it asked for a worker before `Prepare`",
                    ));
                }
                let [control, report] = match exactly(fds) {
                    Ok(fds) => fds,
                    Err(lost @ TransportError::FdsLost) => {
                        let why = lost.to_string();
                        self.tell(&FromZygote::SpawnFailed { worker, why }, Vec::new())?;
                        return Ok(None);
                    }
                    Err(error) => return Err(error.into()),
                };
                match fork() {
                    Ok(0) => {
                        return Ok(Some(Birth {
                            worker,
                            control,
                            report,
                        }));
                    }
                    Ok(pid) => self.adopt(worker, Pid::from_raw(pid))?,
                    Err(error) => {
                        let why = format!("fork failed: {}", explain(&error));
                        self.tell(&FromZygote::SpawnFailed { worker, why }, Vec::new())?;
                    }
                }
                Ok(None)
            }
        }
    }

    /// Reports the outcome of importing a module.
    fn preloaded(
        &mut self,
        module: String,
        imported: Result<(), String>,
    ) -> Result<(), ZygoteError> {
        let threads = os::thread_count();
        let failure = match imported {
            _ if threads > 1 => Some(PreloadFailure::Threads(threads)),
            Ok(()) => None,
            Err(why) => Some(PreloadFailure::Import(why)),
        };
        self.tainted |= threads > 1;
        self.tell(&FromZygote::Preloaded { module, failure }, Vec::new())
    }

    /// In a forked worker: lets go of everything that is the zygote's.
    fn become_worker(&mut self, birth: Birth) -> Result<WorkerControl, ZygoteError> {
        self.children.clear();
        os::default_signal(Signal::SIGTERM).map_err(io_error("restore `SIGTERM`"))?;
        // Not ignored: what functions start would ignore it, too.
        os::disregard_signal(Signal::SIGINT).map_err(io_error("disregard `SIGINT`"))?;
        // A worker that stands still cannot see that it is to end.
        sees_its_end()?;
        let owner = self
            .owner
            .take()
            .ok_or(ZygoteError::Protocol("it sent no pidfd"))?;
        let Birth {
            worker,
            control,
            report,
        } = birth;
        WorkerControl::new(worker, control, report, owner, self.grace, self.outlive)
            .map_err(io_error("set up a worker's control socket"))
    }

    fn adopt(&mut self, worker: u32, pid: Pid) -> Result<(), ZygoteError> {
        // Not reaped yet, so the pid is certainly this child's.
        let opened = os::pidfd_open(pid.as_raw()).and_then(|fd| Ok((fd.try_clone()?, fd)));
        match opened {
            Ok((copy, pidfd)) => {
                self.children.push(Child { worker, pid, pidfd });
                self.tell(
                    &FromZygote::Spawned {
                        worker,
                        pid: pid.as_raw(),
                    },
                    vec![copy],
                )
            }
            Err(error) => {
                // Out of descriptors. A worker that nobody can watch must not live.
                let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                let why = format!("could not open a pidfd: {}", explain(&error));
                self.tell(&FromZygote::SpawnFailed { worker, why }, Vec::new())
            }
        }
    }

    /// Collects the children that have ended, and tells how.
    fn reap(&mut self) {
        let mut index = 0;
        while index < self.children.len() {
            let child = &self.children[index];
            let Some(exit) = try_wait(child.pid) else {
                index += 1;
                continue;
            };
            let child = self.children.swap_remove(index);
            let (worker, pid) = (child.worker, child.pid.as_raw());
            // A socket that fails here fails again in the loop, which ends the zygote.
            let _ = self.tell(&FromZygote::Exited { worker, pid, exit }, Vec::new());
        }
    }

    fn tell(&mut self, message: &FromZygote, fds: Vec<OwnedFd>) -> Result<(), ZygoteError> {
        match self.channel.send(message, fds) {
            // The next look at the socket sees its end.
            Ok(()) | Err(TransportError::Closed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the socket, the owner or a child.
    fn wait(&self, timeout: PollTimeout) -> io::Result<()> {
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, self.channel.has_output());
        let mut fds = vec![PollFd::new(self.channel.as_fd(), wanted)];
        let owner = self.owner.iter().map(AsFd::as_fd);
        let children = self.children.iter().map(|child| child.pidfd.as_fd());
        fds.extend(
            owner
                .chain(children)
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The supervisor is gone: workers get a short grace to end by themselves, then they are killed.
    /// Those that outlive it end with their clients, and are only collected.
    fn wind_down(&mut self) {
        if self.outlive.is_some() {
            for child in &self.children {
                // One that stands still could not see when its clients are gone.
                let _ = os::pidfd_signal(child.pidfd.as_fd(), Signal::SIGCONT as i32);
            }
            return self.wait_for_children(Instant::now() + FOREVER);
        }
        self.wait_for_children(Instant::now() + self.grace);
        for child in &self.children {
            let _ = os::pidfd_signal(child.pidfd.as_fd(), Signal::SIGKILL as i32);
        }
        self.wait_for_children(Instant::now() + REAP_BOUND);
    }

    fn wait_for_children(&mut self, deadline: Instant) {
        loop {
            self.children.retain(|child| try_wait(child.pid).is_none());
            let left = deadline.saturating_duration_since(Instant::now());
            if self.children.is_empty() || left.is_zero() {
                return;
            }
            let mut fds: Vec<_> = self
                .children
                .iter()
                .map(|child| PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN))
                .collect();
            // One more millisecond, so that the remainder of one is not spun away.
            let left = left + Duration::from_millis(1);
            let _ = poll(
                &mut fds,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            );
        }
    }
}

/// Has this process go on when its parent ends, should it stand still (`SIGSTOP`, a debugger) then:
/// a process that goes on sees by itself that it is to end, and does so in order.
fn sees_its_end() -> Result<(), ZygoteError> {
    os::when_orphaned(Signal::SIGCONT).map_err(io_error("ask for word of its parent's end"))
}

/// How a child ended, if it has.
fn try_wait(pid: Pid) -> Option<Exit> {
    match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Some(Exit::Code(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(Exit::Signal(signal as i32)),
        Ok(_) | Err(Errno::EINTR) => None,
        // Other code has reaped it.
        Err(_) => Some(Exit::Unknown),
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ZygoteError {
    move |source| ZygoteError::Io { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::transport;

    fn no_fork() -> io::Result<i32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn myself() -> OwnedFd {
        os::pidfd_open(nix::unistd::getpid().as_raw()).expect("a pidfd")
    }

    /// Says these messages to a zygote and hangs up; gives its verdict and what it said.
    fn converse(
        messages: Vec<(ToZygote, Vec<OwnedFd>)>,
    ) -> (Result<Role, ZygoteError>, Vec<FromZygote>) {
        let (here, there) = transport::pair().expect("a socketpair");
        let mut supervisor = Channel::new(here).expect("a channel");
        for (message, fds) in messages {
            supervisor.send(&message, fds).expect("send");
        }
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(supervisor.fd()),
            nix::sys::socket::Shutdown::Write,
        )
        .expect("shutdown");
        let role = serve(there, no_fork, |module, _| match module {
            "good" => Ok(()),
            _ => Err(format!("no `{module}`")),
        });
        let mut said = Vec::new();
        while let Ok(Received::Message(message, _)) = supervisor.receive() {
            said.push(message);
        }
        (role, said)
    }

    #[test]
    fn it_ends_when_nobody_is_there() {
        assert!(matches!(converse(Vec::new()), (Ok(Role::Done), said) if said.is_empty()));
    }

    #[test]
    fn it_says_its_version_and_turns_another_one_away() {
        let hello = ToZygote::Prepare {
            version: PROTOCOL_VERSION + 1,
            grace_ms: 0,
            outlive_ms: None,
        };
        let (role, said) = converse(vec![(hello, vec![myself()])]);
        let theirs = match role {
            Err(ZygoteError::Version { theirs, .. }) => theirs,
            other => panic!("{other:?}"),
        };
        assert_eq!(theirs, PROTOCOL_VERSION + 1);
        assert!(matches!(
            said[..],
            [FromZygote::Ready {
                version: PROTOCOL_VERSION,
                ..
            }]
        ));
    }

    #[test]
    fn it_forks_for_nobody_it_does_not_know() {
        let (_, socket) = transport::pair().expect("a socketpair");
        let (role, _) = converse(vec![(ToZygote::Spawn { worker: 1 }, vec![socket])]);
        assert!(matches!(role, Err(ZygoteError::Protocol(_))));
    }

    #[test]
    fn a_failing_fork_is_told() {
        let hello = ToZygote::Prepare {
            version: PROTOCOL_VERSION,
            grace_ms: 0,
            outlive_ms: None,
        };
        let (report, socket) = transport::pair().expect("a socketpair");
        let spawn = (ToZygote::Spawn { worker: 3 }, vec![socket, report]);
        let (role, said) = converse(vec![(hello, vec![myself()]), spawn]);
        assert!(matches!(role, Ok(Role::Done)));
        assert!(
            matches!(&said[1], FromZygote::SpawnFailed { worker: 3, .. }),
            "{said:?}"
        );
    }

    #[test]
    fn it_says_what_became_of_a_preload() {
        let preload = |module: &str| {
            let module = module.to_owned();
            let paths = Vec::new();
            (ToZygote::Preload { module, paths }, Vec::new())
        };
        let (role, said) = converse(vec![preload("good"), preload("another")]);
        assert!(matches!(role, Ok(Role::Done)));
        // The tests themselves run in threads, which a zygote must not have.
        let failures: Vec<_> = said
            .iter()
            .map(|message| match message {
                FromZygote::Preloaded { module, failure } => (module.as_str(), failure.is_some()),
                other => panic!("{other:?}"),
            })
            .collect();
        // The second one is not to blame for them: the next zygote imports it.
        assert_eq!(failures, [("good", true)]);
    }
}
