//! The standalone supervisor: the same loop as the embedded one, in a process of its own, for many
//! client processes that share its workers. What is here is only what a process needs that is not a
//! part of another: a socket to listen on, signals, a log, orphaned children.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};

use crate::error::DaemonError;
use crate::options::DaemonOptions;
use crate::os;
use crate::os::peer::Peer;
use crate::os::service_manager;
use crate::supervisor::client_connection::Access;
use crate::supervisor::log_tail::{self, Tail};
use crate::supervisor::reactor::{self, Command};
use crate::supervisor::standalone::Standalone;
use signals::Signals;
use socket::Socket;
pub use socket::default_socket;

mod signals;
mod socket;

/// How long the daemon accepts no client after the system has refused one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs a standalone supervisor in this process until it is stopped, by a signal (`SIGTERM`,
/// `SIGINT`) or by a client's order. `ready` is called, with where it listens, once clients can
/// connect; a service manager that has asked for it is notified too.
///
/// A first signal drains: no new streams, and those that are open may end within
/// [`DaemonOptions::stop_bound`]. A second one ends everything at once.
///
/// It takes the process over: signals, children and the default of `tracing` are its own. Nothing
/// else may wait for children of this process.
///
/// # Errors
///
/// When it cannot start; [`DaemonError`] says why.
pub fn serve(options: DaemonOptions, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    let log = log_tail::start(options.log_format);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    // Workers of a zygote that has died become this process's children, and are collected here.
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)?;
    raise_descriptor_limit();
    let owner = os::pidfd_open(nix::unistd::getpid().as_raw())?;
    let outcome = LocalSet::new().block_on(&runtime, run(options, owner, log, ready));
    drop(runtime);
    outcome
}

async fn run(
    options: DaemonOptions,
    owner: OwnedFd,
    log: Arc<Tail>,
    ready: impl FnOnce(&Path),
) -> Result<(), DaemonError> {
    let (commands, orders) = unbounded_channel();
    let signals = Signals::take()?;
    let (socket, listener) = Socket::listen(options.socket.as_deref())?;
    spawn_local(accept(listener, commands.clone()));
    spawn_local(signals.obey(options.stop_bound, commands));
    let standalone = Standalone {
        runtime: options.runtime,
        preload: options.preload,
        max_clients: options.max_clients,
        client_workers: options.client_workers.map(|most| most.max(1)),
        client_streams: options.client_streams.map(|most| most.max(1)),
        hello_bound: options.hello_bound,
        log,
        notes: options.notes,
    };
    tracing::info!(
        pid = std::process::id(),
        socket = %socket.path().display(),
        velo = velo_shm::VERSION,
        runtime = standalone.runtime,
        "supervisor ready"
    );
    service_manager::say_ready();
    ready(socket.path());
    reactor::run(options.pool, owner, Some(standalone), orders).await;
    tracing::info!("supervisor ended");
    Ok(())
}

async fn accept(listener: UnixListener, commands: UnboundedSender<Command>) {
    loop {
        let taken = listener.accept().await.and_then(|(socket, _)| {
            let socket = OwnedFd::from(socket.into_std()?);
            let peer = Peer::of(&socket)?;
            Ok((socket, peer))
        });
        match taken {
            Ok((socket, peer)) => {
                // Once the loop has ended no client is served.
                let _ = commands.send(Command::Join(socket, peer, Access::Full));
            }
            Err(error) => {
                tracing::warn!(%error, "could not take a client on");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Each client and each link takes some descriptors; the usual soft limit is for programs that call
/// `select`.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}
