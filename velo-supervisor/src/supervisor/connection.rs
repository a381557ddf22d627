//! A control socket as the supervisor's reactor sees it: messages come in by a task of their own,
//! messages go out at once or when the socket takes them. It never waits, and judges no message.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::libc;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;
use velo_shm::standstill::RunningLimit;

use crate::os::clock;
use crate::os::fds::{InChild, TrackedFd};
use crate::wire::transport::{Channel, Received, TransportError};

/// How many messages one peer may have handled before the others have their turn.
const BURST: usize = 32;

/// What a connection brings.
#[derive(Debug)]
pub(crate) enum Delivery<M> {
    Message(M, Vec<OwnedFd>),
    /// The last thing delivered. `None` when the peer has closed it as peers do.
    Ended(Option<TransportError>),
}

/// One peer. Dropping it hangs up.
#[derive(Debug)]
pub(crate) struct Connection {
    line: Rc<Line>,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Line {
    socket: AsyncFd<Socket>,
    /// Messages are queued that the socket did not take.
    queued: Notify,
}

/// A channel that the runtime can watch.
#[derive(Debug)]
struct Socket {
    fd: RawFd,
    channel: RefCell<Channel<TrackedFd>>,
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl Connection {
    /// Takes a socket over. `deliver` is called from a task of the current `LocalSet`. A peer that
    /// takes longer than `patience` for one message is given up; `None`: none is.
    pub(crate) fn open<M: DeserializeOwned + 'static>(
        socket: OwnedFd,
        patience: Option<Duration>,
        mut deliver: impl FnMut(Delivery<M>) + 'static,
    ) -> io::Result<Self> {
        let fd = socket.as_raw_fd();
        let channel = RefCell::new(Channel::new(TrackedFd::new(socket, InChild::Close))?);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let socket = Socket { fd, channel };
        // SAFETY: `fd` is open and owned by the channel, which neither closes nor replaces it while
        // the socket is registered.
        let socket = unsafe { AsyncFd::register_with_interest(socket, interest) }?;
        let line = Rc::new(Line {
            socket,
            queued: Notify::new(),
        });
        let reading = Rc::clone(&line);
        let reader = spawn_local(async move {
            let error = match reading.read(patience, &mut deliver).await {
                Ok(()) | Err(TransportError::Closed) => None,
                Err(error) => Some(error),
            };
            deliver(Delivery::Ended(error));
        });
        Ok(Self {
            line,
            reader: reader.abort_handle(),
        })
    }

    /// Sends a message, now or when the socket takes it.
    pub(crate) fn send<M: Serialize>(
        &self,
        message: &M,
        fds: Vec<OwnedFd>,
    ) -> Result<(), TransportError> {
        let mut channel = self.line.channel().borrow_mut();
        channel.send(message, fds)?;
        if channel.has_output() {
            self.line.queued.notify_one();
        }
        Ok(())
    }

    /// Takes the messages that have arrived, without waiting for the task's turn.
    pub(crate) fn receive_now<M: DeserializeOwned>(&self) -> Option<(M, Vec<OwnedFd>)> {
        match self.line.channel().borrow_mut().receive() {
            Ok(Received::Message(message, fds)) => Some((message, fds)),
            Ok(Received::Empty | Received::Closed) | Err(_) => None,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        // Said to the socket itself: the task drops its handle later, and a forked process may hold
        // another one.
        // SAFETY: the descriptor is open; the call changes nothing but the socket behind it.
        unsafe { libc::shutdown(self.line.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

impl Line {
    fn channel(&self) -> &RefCell<Channel<TrackedFd>> {
        &self.socket.get_ref().channel
    }

    async fn read<M: DeserializeOwned>(
        &self,
        patience: Option<Duration>,
        deliver: &mut impl FnMut(Delivery<M>),
    ) -> Result<(), TransportError> {
        // When what has begun to arrive has to be there.
        let mut due: Option<(Instant, RunningLimit)> = None;
        loop {
            let waiting = self.channel().borrow().has_output();
            let left = due
                .as_ref()
                .map_or(Duration::ZERO, |&(at, _)| clock::until(at));
            tokio::select! {
                ready = self.socket.readable() => {
                    let mut ready = ready?;
                    for turn in 0.. {
                        if turn == BURST {
                            tokio::task::yield_now().await;
                            break;
                        }
                        let received = self.channel().borrow_mut().receive()?;
                        match received {
                            Received::Message(message, fds) => {
                                due = None;
                                deliver(Delivery::Message(message, fds));
                            }
                            Received::Empty => {
                                ready.clear_ready();
                                if self.channel().borrow().is_unfinished() {
                                    due = due.or_else(|| {
                                        let bound = patience?;
                                        Some((clock::now() + bound, RunningLimit::new(bound)))
                                    });
                                }
                                break;
                            }
                            Received::Closed => return Ok(()),
                        }
                    }
                }
                ready = self.socket.writable(), if waiting => {
                    let mut ready = ready?;
                    let mut channel = self.channel().borrow_mut();
                    channel.flush()?;
                    if channel.has_output() {
                        ready.clear_ready();
                    }
                }
                () = self.queued.notified() => {}
                () = sleep(left), if due.is_some() => {
                    if due.as_ref().is_some_and(|&(at, _)| clock::now() >= at) {
                        return Err(TransportError::Unfinished(patience.unwrap_or_default()));
                    }
                }
            }
        }
    }
}
