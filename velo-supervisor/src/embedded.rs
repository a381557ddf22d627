//! The supervisor inside the client's own process: one thread, started at the first connection, or
//! when one is expected. It adds no code path of its own: clients speak to it by the same protocol
//! over a socketpair as they would to a daemon.
//!
//! A process that forks calls the three `fork` functions around the fork (in Python:
//! `os.register_at_fork`). The child then lets go of the parent's supervisor, and gets one of its
//! own at its first [`connect`].

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::{
    UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel,
};

use crate::client::Client;
use crate::error::SupervisorError;
use crate::options::{EmbeddedOptions, FOREVER};
use crate::os;
use crate::os::fds::{self, InChild, TrackedFd};
use crate::os::peer::Peer;
use crate::published::Published;
use crate::runtime_folder;
use crate::supervisor::client_connection::Access;
use crate::supervisor::reactor::{self, Command};
use crate::wire::protocol::Status;
use crate::wire::transport;

/// How long [`status`] waits for the supervisor's thread.
const STATUS_BOUND: Duration = Duration::from_secs(1);
/// How long no viewer is accepted after the system has refused one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How much longer than its bound [`shutdown`] waits for the thread itself.
const JOIN_SLACK: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Embedded {
    commands: UnboundedSender<Command>,
    thread: JoinHandle<()>,
    /// Disconnected when the thread is about to end.
    alive: Receiver<()>,
    pid: u32,
}

static EMBEDDED: Mutex<Option<Embedded>> = Mutex::new(None);

type Slot = MutexGuard<'static, Option<Embedded>>;

thread_local! {
    /// The slot, for the thread that holds it over a fork.
    static HELD: RefCell<Option<Slot>> = const { RefCell::new(None) };
}

/// This process's supervisor, if any. One that another process has started is forgotten.
fn lock() -> Slot {
    // A thread that comes here between the fork calls must not wait for itself: it forks
    // unprotected then, and the child does what it can.
    after_fork_parent();
    // No code under this lock leaves the option half-changed.
    let mut slot = EMBEDDED.lock().unwrap_or_else(PoisonError::into_inner);
    if slot
        .as_ref()
        .is_some_and(|running| running.pid != std::process::id())
    {
        forget(&mut slot);
    }
    slot
}

/// Starts this process's supervisor if it is not running, and returns a new connection to it; each
/// event loop has its own. The options of the first call hold until the supervisor ends.
///
/// Waits for no process: the zygote starts when the first worker is needed, or expected, and what goes
/// wrong with it is said to who needed it.
///
/// # Errors
///
/// When no thread, socket or pidfd can be made, or no zygote command is given.
pub fn connect(options: &EmbeddedOptions) -> Result<Client, SupervisorError> {
    let mut embedded = slot_for(options)?;
    let (here, there) = transport::pair().map_err(SupervisorError::Start)?;
    let here = TrackedFd::new(here, InChild::Replace);
    tell(&mut embedded, options, Command::Connect(there))?;
    drop(embedded);
    Client::new(here)
}

/// Starts this process's supervisor as [`connect`] does, and its zygote, which takes most of the time
/// until a first worker is there. One that is not needed in the end leaves as others do that idle.
///
/// # Errors
///
/// As those of [`connect`].
pub fn expect(options: &EmbeddedOptions) -> Result<(), SupervisorError> {
    tell(&mut *slot_for(options)?, options, Command::Expect)
}

fn slot_for(options: &EmbeddedOptions) -> Result<Slot, SupervisorError> {
    match options.zygote_command.is_empty() {
        true => Err(SupervisorError::NoCommand),
        false => Ok(lock()),
    }
}

/// Sends a message to this process's supervisor; it is started if it does not run.
fn tell(
    embedded: &mut Option<Embedded>,
    options: &EmbeddedOptions,
    mut command: Command,
) -> Result<(), SupervisorError> {
    if let Some(running) = embedded {
        match running.commands.send(command) {
            Ok(()) => return Ok(()),
            Err(refused) => command = refused.0,
        }
    }
    // None runs, or it has ended: its thread needs no more attention.
    let started = start(options.clone()).map_err(SupervisorError::Start)?;
    // Its thread has just been started and holds the receiver.
    let _ = started.commands.send(command);
    *embedded = Some(started);
    Ok(())
}

/// Ends the supervisor, its zygote and its workers, and waits for them: streams may finish for the
/// greatest part of the bound, then signals follow. All clients see [`crate::ClientEvent::Lost`]. Of no
/// effect when none runs. A later [`connect`] starts a new one.
pub fn shutdown(bound: Duration) {
    let bound = bound.min(FOREVER);
    let mut embedded = lock();
    let Some(running) = embedded.take() else {
        return;
    };
    // Not held while waiting: other threads may fork.
    drop(embedded);
    let _ = running.commands.send(Command::Shutdown { bound });
    match running.alive.recv_timeout(bound.saturating_add(JOIN_SLACK)) {
        Err(RecvTimeoutError::Timeout) => {
            tracing::error!("the supervisor's thread did not end in time; it is left behind");
        }
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            if running.thread.join().is_err() {
                tracing::error!("the supervisor's thread panicked");
            }
        }
    }
}

/// A look at the supervisor; `None` when none runs. Waits for its thread, for a second at most.
pub fn status() -> Option<Status> {
    let (reply, answer) = sync_channel(1);
    lock()
        .as_ref()?
        .commands
        .send(Command::Status(reply))
        .ok()?;
    answer.recv_timeout(STATUS_BOUND).ok()
}

/// Call right before a fork, on the thread that forks.
pub fn before_fork() {
    // A fork that failed without its after-call leaves the locks held; they still serve.
    if HELD.with_borrow(Option::is_none) {
        // In the order in which `connect` takes them.
        HELD.set(Some(lock()));
        fds::hold();
    }
}

/// Call after a fork in the parent, on the thread that forked. Also when the fork failed.
pub fn after_fork_parent() {
    fds::release();
    drop(HELD.take());
}

/// Call after a fork in the child: lets go of the parent's supervisor without a word to it. The
/// parent's clients are dead here; a new [`connect`] starts a supervisor of the child's own.
pub fn after_fork_child() {
    let held = HELD.take().or_else(|| match EMBEDDED.try_lock() {
        Ok(slot) => Some(slot),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        // Another thread of the parent was about to change it. It does not exist here.
        Err(TryLockError::WouldBlock) => None,
    });
    if let Some(mut slot) = held {
        forget(&mut slot);
    }
}

/// In a forked child: forgets the parent's supervisor.
fn forget(slot: &mut Option<Embedded>) {
    fds::abandon_parents();
    // Its thread does not exist here: there is no thread to join, and nothing to drop but memory that
    // other threads may have been about to change.
    mem::forget(slot.take());
}

fn start(options: EmbeddedOptions) -> io::Result<Embedded> {
    let pid = std::process::id();
    let owner = os::pidfd_open(i32::try_from(pid).map_err(io::Error::other)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let (commands, orders) = unbounded_channel();
    // Read here, because other threads may change the environment.
    let folder = runtime_folder::default();
    let viewers = commands.downgrade();
    let (living, alive) = sync_channel(1);
    let thread = thread::Builder::new()
        .name("velo-supervisor".into())
        .spawn(move || {
            os::block_signals();
            serve(&runtime, options, owner, orders, publish(folder, viewers));
            drop(runtime);
            drop(living);
        })?;
    Ok(Embedded {
        commands,
        thread,
        alive,
        pid,
    })
}

fn serve(
    runtime: &tokio::runtime::Runtime,
    options: EmbeddedOptions,
    owner: OwnedFd,
    orders: UnboundedReceiver<Command>,
    published: impl Future<Output = ()> + 'static,
) {
    let tasks = tokio::task::LocalSet::new();
    tasks.spawn_local(published);
    tasks.block_on(runtime, reactor::run(options, owner, None, orders));
}

/// Lets this user's other processes look at the supervisor, until it ends. What goes wrong costs the
/// program nothing but that it is not found.
async fn publish(folder: PathBuf, viewers: WeakUnboundedSender<Command>) {
    // The first worker is more urgent.
    tokio::task::yield_now().await;
    let (_published, listener) = match Published::listen(&folder) {
        Ok(listening) => listening,
        Err(error) => {
            tracing::warn!(%error, "this program will not be found by `velo top` and `velo status`");
            return;
        }
    };
    loop {
        let taken = listener.accept().await.and_then(|(socket, _)| {
            let socket = OwnedFd::from(socket.into_std()?);
            let peer = Peer::of(&socket)?;
            Ok((socket, peer))
        });
        match (taken, viewers.upgrade()) {
            (_, None) => return,
            (Ok((socket, peer)), Some(commands)) => {
                // Once the loop has ended no viewer is served.
                let _ = commands.send(Command::Join(socket, peer, Access::Look));
            }
            (Err(error), _) => {
                tracing::warn!(%error, "could not take a viewer on");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
