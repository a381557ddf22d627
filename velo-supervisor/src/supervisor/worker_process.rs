//! One worker process as the supervisor sees it: its control socket, its pidfd, and the means to stop
//! it. The pool decides when it stops.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use velo_shm::LinkCounters;

use crate::os;
use crate::os::process::Process;
use crate::pool::Step;
use crate::supervisor::connection::{Connection, Delivery};
use crate::supervisor::report::{Report, Stacks};
use crate::wire::protocol::{FromWorker, ToWorker};
use crate::wire::transport::{self, TransportError};

/// A worker, from the moment it is asked for.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    connection: Connection,
    process: Option<Process>,
    report: Report,
    /// The thread that it serves in.
    thread: u64,
    /// Which zygote has forked it.
    zygote: u64,
    /// The last step of stopping that was ordered before it was forked.
    stopped: Option<Step>,
    /// Events and results of links that are gone.
    counted: (u64, u64),
}

impl WorkerProcess {
    /// Makes the control socket and the report of a worker that is yet to be forked, and gives the
    /// worker's ends of them. What is sent before the fork waits there.
    pub(crate) fn prepare(
        deliver: impl FnMut(Delivery<FromWorker>) + 'static,
    ) -> io::Result<(Self, Vec<OwnedFd>)> {
        let (report, theirs) = Report::create()?;
        let (here, there) = transport::pair()?;
        let connection = Connection::open(here, None, deliver)?;
        Ok((
            Self {
                connection,
                process: None,
                report,
                thread: 0,
                zygote: 0,
                stopped: None,
                counted: (0, 0),
            },
            vec![there, theirs],
        ))
    }

    /// The worker was forked.
    pub(crate) fn born(
        &mut self,
        zygote: u64,
        pidfd: OwnedFd,
        ended: impl FnOnce() + 'static,
    ) -> io::Result<()> {
        self.zygote = zygote;
        self.process = Some(Process::watch(pidfd, ended)?);
        if let Some(step) = self.stopped.filter(|step| *step > Step::Drain) {
            self.stop(step);
        }
        Ok(())
    }

    /// It serves, in this thread.
    pub(crate) fn started(&mut self, thread: u64) {
        self.thread = thread;
    }

    /// Notes what went through a link that is gone.
    pub(crate) fn add_counted(&mut self, link: LinkCounters) {
        let (events, results) = &mut self.counted;
        *events = events.wrapping_add(link.to_worker.events);
        *results = results.wrapping_add(link.to_client.events);
    }

    /// Events and results that went through links that are gone.
    pub(crate) fn counted(&self) -> (u64, u64) {
        self.counted
    }

    /// Removes its written report.
    pub(crate) fn clear_stacks(&self) {
        self.report.clear();
    }

    /// The stacks that it has written.
    pub(crate) fn stacks(&self) -> Stacks {
        self.report.read(self.thread)
    }

    /// Has it write down its stacks, where nothing else is written then.
    pub(crate) fn ask_for_stacks(&self) {
        self.report.clear();
        if let Some(process) = &self.process {
            process.signal(os::stacks_signal());
        }
    }

    /// How many bytes it has written.
    pub(crate) fn written(&self) -> u64 {
        self.report.len()
    }

    /// A handle of the process, for a client that may outlive this supervisor.
    pub(crate) fn handle(&self) -> Option<OwnedFd> {
        self.process.as_ref()?.handle().ok()
    }

    /// Which zygote has forked it, and so can tell its exit status.
    pub(crate) fn zygote(&self) -> u64 {
        self.zygote
    }

    pub(crate) fn send(&self, message: &ToWorker, fds: Vec<OwnedFd>) -> Result<(), TransportError> {
        self.connection.send(message, fds)
    }

    /// Takes one step towards its end.
    pub(crate) fn stop(&mut self, step: Step) {
        self.stopped = Some(step);
        match (step, &self.process) {
            // One that has hung up is not told; its time runs all the same.
            (Step::Drain, _) => drop(self.send(&ToWorker::Drain, Vec::new())),
            (Step::Terminate, Some(process)) => process.signal(Signal::SIGTERM as i32),
            (Step::Kill, Some(process)) => process.signal(Signal::SIGKILL as i32),
            (Step::Terminate | Step::Kill, None) => {}
        }
    }
}
