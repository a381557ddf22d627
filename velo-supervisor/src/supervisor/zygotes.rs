//! The zygote as the supervisor sees it: started when a worker is needed or expected, replaced when
//! it dies, let go when nothing has been needed for long. It forks nothing itself, and knows workers
//! by number.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::os;
use crate::os::exit::Exit;
use crate::os::fds::{InChild, TrackedFd};
use crate::os::limits::explain;
use crate::os::process::Process;
use crate::pool::WorkerId;
use crate::pool::restarts::{PATIENCE, Restarts};
use crate::supervisor::connection::{Connection, Delivery};
use crate::supervisor::zygote_orders::{ZygoteOrder, ZygoteOrders};
use crate::wire::protocol::{FromZygote, PROTOCOL_VERSION, ToZygote, ZYGOTE_FD_ENV};
use crate::wire::transport;

/// How long a zygote that was let go may take to end.
const LEAVE_BOUND: Duration = Duration::from_secs(2);
/// How long workers may outlive the process they serve.
const GRACE: Duration = Duration::from_millis(500);

/// What happens to a zygote.
#[derive(Debug)]
pub(crate) enum ZygoteEvent {
    Said(Delivery<FromZygote>),
    Ended,
}

/// Where zygotes' news go, with the number of the zygote.
pub(crate) type Report = Rc<dyn Fn(u64, ZygoteEvent)>;

#[derive(Debug)]
struct Zygote {
    number: u64,
    child: Child,
    process: Process,
    /// None once it got the order to leave.
    connection: Option<Connection>,
    threads: Option<u32>,
    orders: ZygoteOrders,
    /// It is killed then.
    kill_at: Option<Instant>,
    /// Why it will be no surprise that it ends, where it is a failure all the same. It has no deadline then.
    fault: Option<String>,
}

impl Zygote {
    /// Tells it to import a module.
    fn import(&mut self, now: Instant, module: &str, paths: &[OsString]) {
        let message = ToZygote::Preload {
            module: module.to_owned(),
            paths: paths.to_owned(),
        };
        // One that cannot be told is about to be found dead.
        if let Some(connection) = &self.connection
            && connection.send(&message, Vec::new()).is_ok()
        {
            let order = ZygoteOrder::Import(module.to_owned());
            self.orders.give(now, order);
        }
    }

    /// When what it does now has taken too long.
    fn deadline(&self) -> Option<Instant> {
        let expected = self.connection.is_some() && self.fault.is_none();
        self.orders.deadline().filter(|_| expected)
    }
}

/// Keeper of the zygote.
pub(crate) struct ZygoteManager {
    command: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    /// A pidfd of this process, for processes that end with it.
    owner: TrackedFd,
    idle: Duration,
    /// It is a standalone supervisor's: a zygote is there as long as that, and its workers outlive
    /// both.
    standing: bool,
    /// A worker is going to be wanted: a zygote is to be there by then.
    expecting: bool,
    zygote: Option<Zygote>,
    next_number: u64,
    restarts: Restarts,
    /// Workers that are to be forked by the next zygote.
    unsent: VecDeque<(WorkerId, Vec<OwnedFd>)>,
    idle_since: Option<Instant>,
    preload: Preload,
    report: Report,
}

/// What zygotes import, in this order.
#[derive(Debug, Default)]
struct Preload {
    modules: Vec<String>,
    /// Modules that cannot be preloaded.
    refused: Vec<String>,
    paths: Vec<OsString>,
}

impl Preload {
    fn refuse(&mut self, module: &str) {
        self.modules.retain(|known| known != module);
        self.refused.push(module.to_owned());
    }
}

impl ZygoteManager {
    pub(crate) fn new(
        command: Vec<OsString>,
        env: Vec<(OsString, OsString)>,
        owner: OwnedFd,
        idle: Duration,
        standing: bool,
        report: Report,
    ) -> Self {
        Self {
            command,
            env,
            owner: TrackedFd::new(owner, InChild::Close),
            idle,
            standing,
            expecting: false,
            zygote: None,
            next_number: 1,
            restarts: Restarts::default(),
            unsent: VecDeque::new(),
            idle_since: None,
            preload: Preload::default(),
            report,
        }
    }

    /// Process id and number of threads, if there is one.
    pub(crate) fn describe(&self) -> Option<(i32, Option<u32>)> {
        let zygote = self.zygote.as_ref()?;
        Some((
            i32::try_from(zygote.child.id()).unwrap_or(0),
            zygote.threads,
        ))
    }

    /// Whether this very zygote still lives and talks.
    pub(crate) fn lives(&self, number: u64) -> bool {
        self.zygote
            .as_ref()
            .is_some_and(|z| z.number == number && z.connection.is_some())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.zygote.is_none()
    }

    /// Has workers that are forked from now on import these modules.
    pub(crate) fn preload(&mut self, now: Instant, modules: Vec<String>, paths: Vec<OsString>) {
        let known = &mut self.preload;
        // In the order of the program that asked last.
        let before = std::mem::replace(&mut known.paths, paths);
        for path in before {
            if !known.paths.contains(&path) {
                known.paths.push(path);
            }
        }
        for module in modules {
            if !known.modules.contains(&module) && !known.refused.contains(&module) {
                known.modules.push(module.clone());
                if let Some(zygote) = &mut self.zygote {
                    zygote.import(now, &module, &known.paths);
                }
            }
        }
    }

    /// A zygote has imported a module, or not. One that the module `taints` is replaced by another,
    /// without it.
    pub(crate) fn preloaded(
        &mut self,
        now: Instant,
        number: u64,
        module: &str,
        failure: bool,
        taints: bool,
    ) {
        if failure {
            self.preload.refuse(module);
        }
        let Some(zygote) = self.zygote.as_mut().filter(|z| z.number == number) else {
            return;
        };
        let order = ZygoteOrder::Import(module.to_owned());
        zygote.orders.answered(now, &order);
        self.restarts.attempted(now);
        if taints {
            self.replace();
        }
    }

    /// The module whose import takes too long, if there is one. Its zygote is replaced by another, without it.
    pub(crate) fn hung_import(&mut self, now: Instant) -> Option<String> {
        let zygote = self.zygote.as_ref()?;
        zygote.deadline().filter(|at| *at <= now)?;
        let ZygoteOrder::Import(module) = zygote.orders.current()? else {
            return None;
        };
        let module = module.clone();
        self.preload.refuse(&module);
        self.replace();
        Some(module)
    }

    /// Has the next worker forked by another zygote. Workers that are there go on.
    pub(crate) fn replace(&mut self) {
        if let Some(zygote) = &mut self.zygote {
            // Not asked to leave, for that may take its workers with it.
            zygote.connection = None;
            zygote.process.signal(Signal::SIGKILL as i32);
        }
    }

    /// Has a zygote start before there is a worker to fork.
    pub(crate) fn expect(&mut self) {
        self.expecting = self.zygote.is_none();
    }

    /// Has a worker forked, now or by the next zygote, and given these descriptors.
    pub(crate) fn request(&mut self, worker: WorkerId, fds: Vec<OwnedFd>) {
        self.unsent.push_back((worker, fds));
    }

    /// Does what is due. An error says why no worker can be forked; pending requests must be refused.
    pub(crate) fn advance(&mut self, now: Instant, workers: usize) -> Result<(), String> {
        self.let_go_when_idle(now, workers);
        self.kill_when_due(now);
        if !self.is_wanted() {
            return Ok(());
        }
        while self.zygote.is_none() {
            if !self.restarts.ready(now) {
                return Ok(());
            }
            if let Err(error) = self.start(now) {
                let why = format!("could not start: {}", explain(&error));
                self.restarts.failed(now, now, why);
                // No later attempt finds a program that is not there.
                let hopeless = matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                );
                self.verdict(hopeless)?;
            }
        }
        let Some(zygote) = &mut self.zygote else {
            return Ok(());
        };
        let Some(connection) = &zygote.connection else {
            return Ok(());
        };
        while let Some((worker, fds)) = self.unsent.pop_front() {
            let spawn = ToZygote::Spawn { worker };
            if connection.send(&spawn, fds).is_err() {
                // It is about to be found dead, which brings its workers back.
                break;
            }
            zygote.orders.give(now, ZygoteOrder::Fork(worker));
        }
        Ok(())
    }

    /// Whether there should be a zygote.
    fn is_wanted(&self) -> bool {
        self.standing || self.expecting || !self.unsent.is_empty()
    }

    fn kill_when_due(&mut self, now: Instant) {
        let Some(zygote) = &mut self.zygote else {
            return;
        };
        if zygote.deadline().is_some_and(|at| at <= now) {
            zygote.fault = Some(zygote.orders.fault());
        } else if zygote.kill_at.is_none_or(|at| at > now) {
            return;
        }
        zygote.kill_at = None;
        zygote.process.signal(Signal::SIGKILL as i32);
    }

    /// The zygote has forked a worker, or said that it cannot.
    pub(crate) fn answered(&mut self, now: Instant, worker: WorkerId) {
        if let Some(zygote) = &mut self.zygote {
            zygote.orders.answered(now, &ZygoteOrder::Fork(worker));
        }
    }

    /// When to advance next if nothing happens until then.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let retry = match self.zygote {
            None if self.is_wanted() => self.restarts.not_before(),
            _ => None,
        };
        let kill = self.zygote.as_ref().and_then(|zygote| zygote.kill_at);
        let late = self.zygote.as_ref().and_then(Zygote::deadline);
        let leave = self.idle_since.map(|since| since + self.patience());
        [retry, kill, late, leave].into_iter().flatten().min()
    }

    /// The zygote has said that it is ready. An error ends it.
    pub(crate) fn ready(&mut self, now: Instant, version: u32, threads: u32) -> Result<(), String> {
        let Some(zygote) = &mut self.zygote else {
            return Ok(());
        };
        zygote.threads = Some(threads);
        zygote.orders.ready(now);
        self.restarts.attempted(now);
        if version == PROTOCOL_VERSION {
            return Ok(());
        }
        self.leave(now);
        self.unsent.clear();
        Err(format!(
            "the zygote {} speaks protocol version `{version}`, this program \
             `{PROTOCOL_VERSION}`; run the same version of velo on both sides",
            self.command_line()
        ))
    }

    /// The zygote has closed its socket or broken the protocol: it ends soon, or is made to.
    pub(crate) fn hung_up(&mut self, now: Instant, number: u64, why: Option<String>) {
        if let Some(zygote) = self
            .zygote
            .as_mut()
            .filter(|zygote| zygote.number == number)
        {
            zygote.fault = why.or(zygote.fault.take());
            zygote.kill_at = Some(now + GRACE);
        }
    }

    /// What a zygote that has ended had still said.
    pub(crate) fn last_words(&self, number: u64) -> Vec<(FromZygote, Vec<OwnedFd>)> {
        self.zygote
            .iter()
            .filter(|zygote| zygote.number == number)
            .filter_map(|zygote| zygote.connection.as_ref())
            .flat_map(|connection| std::iter::from_fn(|| connection.receive_now()))
            .collect()
    }

    /// The zygote has ended. Whom it had not forked will not come: all of them must be asked for
    /// again. An error says why that is of no use.
    pub(crate) fn ended(&mut self, now: Instant, number: u64) -> Result<(), String> {
        let Some(mut zygote) = self.zygote.take_if(|zygote| zygote.number == number) else {
            return Ok(());
        };
        let exit = match zygote.child.try_wait() {
            Ok(Some(status)) => match (status.signal(), status.code()) {
                (Some(signal), _) => Exit::Signal(signal),
                (None, Some(code)) => Exit::Code(code),
                (None, None) => Exit::Unknown,
            },
            // Another thread of this process has collected it.
            Ok(None) | Err(_) => Exit::Unknown,
        };
        self.unsent.clear();
        self.idle_since = None;
        if zygote.connection.is_none() {
            return Ok(());
        }
        tracing::warn!(pid = zygote.child.id(), %exit, "the zygote died");
        let began = zygote.orders.busy_since().unwrap_or(now);
        let why = zygote.fault.unwrap_or_else(|| exit.to_string());
        self.restarts.failed(began, now, why);
        self.verdict(false)
    }

    /// Tells the zygote to end, for good where it is a standalone supervisor's.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.standing = false;
        self.expecting = false;
        self.idle_since = None;
        if let Some(zygote) = &mut self.zygote
            && zygote.connection.take().is_some()
        {
            zygote.kill_at = Some(now + LEAVE_BOUND);
        }
    }

    /// Ends the zygote here and now.
    pub(crate) fn kill(&mut self) {
        if let Some(mut zygote) = self.zygote.take() {
            zygote.process.signal(Signal::SIGKILL as i32);
            // Killed: this waits for the system alone.
            let _ = zygote.child.wait();
        }
    }

    fn let_go_when_idle(&mut self, now: Instant, workers: usize) {
        let idle = workers == 0
            && !self.standing
            && self.unsent.is_empty()
            && self
                .zygote
                .as_ref()
                .is_some_and(|zygote| zygote.connection.is_some());
        match self.idle_since {
            _ if !idle => self.idle_since = None,
            None => self.idle_since = Some(now),
            Some(since) if now >= since + self.patience() => self.leave(now),
            Some(_) => {}
        }
    }

    /// A zygote is worth keeping longer than a worker: it is cheap, and its start is not.
    fn patience(&self) -> Duration {
        self.idle.saturating_mul(10)
    }

    fn verdict(&mut self, hopeless: bool) -> Result<(), String> {
        if !hopeless && self.restarts.streak() < PATIENCE {
            return Ok(());
        }
        self.expecting = false;
        self.unsent.clear();
        let reasons = self.restarts.reasons();
        Err(format!(
            "the zygote {} does not live: {reasons}",
            self.command_line()
        ))
    }

    fn command_line(&self) -> String {
        let words: Vec<_> = self
            .command
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        format!("`{}`", words.join(" "))
    }

    fn start(&mut self, now: Instant) -> io::Result<()> {
        let (here, there) = transport::pair()?;
        let there = TrackedFd::new(there, InChild::Close);
        let number = self.next_number;
        self.next_number += 1;
        let mut child = self.command(&there)?.spawn()?;
        let set_up = (|| {
            let report = Rc::clone(&self.report);
            let pidfd = os::pidfd_open(i32::try_from(child.id()).map_err(io::Error::other)?)?;
            let process = Process::watch(pidfd, move || report(number, ZygoteEvent::Ended))?;
            let report = Rc::clone(&self.report);
            let deliver = move |said| report(number, ZygoteEvent::Said(said));
            let connection = Connection::open(here, None, deliver)?;
            let version = PROTOCOL_VERSION;
            let grace_ms = u32::try_from(GRACE.as_millis()).unwrap_or(u32::MAX);
            let owner = self.owner.as_fd().try_clone_to_owned()?;
            let idle = u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX);
            let outlive_ms = self.standing.then_some(idle);
            let hello = ToZygote::Prepare {
                version,
                grace_ms,
                outlive_ms,
            };
            connection
                .send(&hello, vec![owner])
                .map_err(io::Error::other)?;
            Ok((process, connection))
        })();
        let (process, connection) = match set_up {
            Ok(parts) => parts,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        tracing::info!(pid = child.id(), "zygote started");
        let mut zygote = Zygote {
            number,
            child,
            process,
            connection: Some(connection),
            threads: None,
            orders: ZygoteOrders::new(now),
            kill_at: None,
            fault: None,
        };
        for module in &self.preload.modules {
            zygote.import(now, module, &self.preload.paths);
        }
        self.zygote = Some(zygote);
        self.expecting = false;
        Ok(())
    }

    fn command(&self, socket: &TrackedFd) -> io::Result<Command> {
        use std::os::fd::AsRawFd;

        let (program, arguments) = self
            .command
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let number = socket.as_raw_fd();
        let parent = nix::unistd::getpid();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env(ZYGOTE_FD_ENV, number.to_string())
            .stdin(Stdio::null());
        if self.standing {
            // What a service manager has told this process is not for workers, and a function that
            // runs streams itself has workers of its own.
            command
                .env_remove("NOTIFY_SOCKET")
                .env_remove("VELO_SUPERVISOR");
        }
        let prepare = move || {
            // SAFETY: the parent keeps `socket` open until the child has called exec.
            let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            os::keep_over_exec(socket)?;
            // The program may ignore signals whose default action its workers need: without `SIGCHLD`
            // nobody learns how a child has ended.
            os::default_signals();
            os::unblock_signals();
            // A Ctrl-C is the client's, also while the zygote imports.
            os::ignore_signal(Signal::SIGINT)?;
            // It follows the thread that forks: the supervisor's, which lives as long as the process.
            // This is for a zygote that does not serve yet; `zygote::serve` chooses another.
            os::when_orphaned(Signal::SIGKILL)?;
            // The parent may have died before that.
            if nix::unistd::getppid() != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        };
        // SAFETY: between fork and exec `prepare` makes plain system calls only; it allocates
        // nothing and takes no lock.
        unsafe { command.pre_exec(prepare) };
        Ok(command)
    }
}

#[cfg(test)]
mod tests;
