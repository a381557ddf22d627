//! Signals of a standalone supervisor, read from a descriptor: no handler runs anywhere.

use std::io;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;

use crate::supervisor::reactor::Command;

/// The signals that end a supervisor, and the one that tells of ended children. They are blocked as
/// long as this lives.
pub(super) struct Signals {
    fd: AsyncFd<SignalFd>,
    usual: SigSet,
}

impl Signals {
    /// Call it while this process has one thread.
    pub(super) fn take() -> io::Result<Self> {
        let ours = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]);
        let mut usual = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ours), Some(&mut usual))?;
        let fd = SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // SAFETY: the descriptor is open, and its owner neither closes nor replaces it before it is
        // dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { fd, usual })
    }

    /// Drains at the first signal, ends everything at the next; has children collected.
    pub(super) async fn obey(self, bound: Duration, commands: UnboundedSender<Command>) {
        let mut first = true;
        while let Ok(mut ready) = self.fd.readable().await {
            let signal = match self.fd.get_ref().read_signal() {
                Ok(Some(found)) => Signal::try_from(found.ssi_signo.cast_signed()),
                _ => {
                    ready.clear_ready();
                    continue;
                }
            };
            let command = match signal {
                Ok(Signal::SIGCHLD) => Command::Collect,
                Ok(_) if std::mem::take(&mut first) => Command::Drain { bound: Some(bound) },
                Ok(_) => Command::Shutdown {
                    bound: Duration::ZERO,
                },
                Err(_) => continue,
            };
            // Once the loop has ended no command is obeyed.
            if commands.send(command).is_err() {
                return;
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // It fails only for an unknown `how`.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.usual), None);
    }
}
