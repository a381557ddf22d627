//! A client's end of the control connection: it asks the supervisor for links, and reads the answers. It
//! never waits; its descriptor is readable when there are messages.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::libc;
use velo_shm::Side;

use crate::error::SupervisorError;
use crate::os::dial::dial;
use crate::os::fds::{InChild, TrackedFd};
use crate::os::peer;
use crate::runtime_folder::with_short_path;
use crate::wire::link;
use crate::wire::protocol::{
    FromClient, Key, LinkId, Order, PROTOCOL_VERSION, Refusal, RequestId, ToClient,
};
use crate::wire::transport::{Channel, Received, TransportError};

mod event;

pub use event::ClientEvent;

/// One connection to a supervisor; each event loop has its own. Dropping it gives its links back.
///
/// In a forked child the parent's clients are dead: [`Client::poll`] says [`ClientEvent::Lost`].
#[derive(Debug)]
pub struct Client {
    channel: Channel<TrackedFd>,
    next_request: u64,
    lost: bool,
    pid: u32,
}

impl Client {
    pub(crate) fn new(fd: TrackedFd) -> Result<Self, SupervisorError> {
        let mut channel = Channel::new(fd).map_err(SupervisorError::Start)?;
        let hello = FromClient::Hello {
            version: PROTOCOL_VERSION,
        };
        match channel.send(&hello, Vec::new()) {
            // It may have said why it hung up: that is for `poll` to tell.
            Ok(()) | Err(TransportError::Closed) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self {
            channel,
            next_request: 1,
            lost: false,
            pid: std::process::id(),
        })
    }

    /// Connects to the standalone supervisor that listens at `path`. Waits only where more connections
    /// than it has room for are not accepted yet, and at most a second: what the supervisor is comes as
    /// [`ClientEvent::Hello`].
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Nobody`] when no supervisor listens there, [`SupervisorError::Silent`] when it
    /// accepts no connection, and [`SupervisorError::Foreign`] when it is another user's: what it would
    /// have this process run is not to be trusted.
    pub fn connect(path: &Path) -> Result<Self, SupervisorError> {
        let connected = with_short_path(path, dial);
        let socket = connected.map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::WouldBlock => SupervisorError::Silent { path },
                _ => SupervisorError::Nobody { path, source },
            }
        })?;
        let socket = OwnedFd::from(socket);
        let (uid, ours) = (peer::user(&socket), nix::unistd::geteuid().as_raw());
        match uid.map_err(SupervisorError::Start)? {
            uid if uid == ours => Self::new(TrackedFd::new(socket, InChild::Replace)),
            uid => Err(SupervisorError::Foreign {
                path: path.to_owned(),
                uid,
            }),
        }
    }

    /// Readable when [`Client::poll`] has events.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Asks for a link to a worker that this client has no link to yet: the least loaded one, or a
    /// new one while there are fewer than `max_workers` (0: as many as there are usable cores).
    /// The answer is a [`ClientEvent::Link`] or a [`ClientEvent::Refused`] with the same id.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn acquire(&mut self, max_workers: u32) -> Result<RequestId, SupervisorError> {
        let request = RequestId(self.next_request);
        self.send(&FromClient::Acquire {
            request,
            max_workers,
        })?;
        self.next_request += 1;
        Ok(request)
    }

    /// Asks to be attached to what is kept under a key: at once if nobody is, else in line (`wait`) or
    /// not at all. The answer is a [`ClientEvent::KeyGranted`] or a [`ClientEvent::KeyRefused`] with
    /// the same id. Before it comes a [`ClientEvent::Link`] if this client has none to the worker.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn acquire_key(
        &mut self,
        key: Key,
        max_workers: u32,
        wait: bool,
    ) -> Result<RequestId, SupervisorError> {
        let request = RequestId(self.next_request);
        self.send(&FromClient::AcquireKey {
            request,
            key,
            max_workers,
            wait,
        })?;
        self.next_request += 1;
        Ok(request)
    }

    /// Withdraws a request for a key, whether it waits or was granted; not once a stream was opened
    /// with its grant, which the worker ends.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn release_key(&mut self, request: RequestId, key: Key) -> Result<(), SupervisorError> {
        self.send(&FromClient::ReleaseKey { request, key })
    }

    /// Says that the end of an attachment was seen: a request for the key from here on does not
    /// find it taken, although the worker's word may still be on its way.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn left_key(&mut self, key: Key, grant: u64) -> Result<(), SupervisorError> {
        self.send(&FromClient::LeftKey { key, grant })
    }

    /// Gives a link back. Streams that are still open on it are cancelled by the worker. A link that
    /// the supervisor has already taken back is no error.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn release(&mut self, link: LinkId) -> Result<(), SupervisorError> {
        let broken = false;
        self.send(&FromClient::Release { link, broken })
    }

    /// Gives a link back whose memory the worker has written over. The worker gets no more links, and
    /// ends when nobody has one.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn release_broken(&mut self, link: LinkId) -> Result<(), SupervisorError> {
        let broken = true;
        self.send(&FromClient::Release { link, broken })
    }

    /// Has the worker of a link looked at, and killed when a function holds it for longer than the
    /// board allows, or when it does nothing for `stall` although something waits for it. One that has
    /// more than `memory` bytes of its own takes no more streams; with twice as much, or when it does
    /// not do with less soon, it is killed. To be called when [`Link::begin_limit`] says so, and
    /// when a limit is stricter than it was.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn watch(
        &mut self,
        link: LinkId,
        stall: Option<Duration>,
        memory: Option<u64>,
    ) -> Result<(), SupervisorError> {
        let stall_ms = stall.map(|stall| u64::try_from(stall.as_millis()).unwrap_or(u64::MAX));
        self.send(&FromClient::Watch {
            link,
            stall_ms,
            memory,
        })
    }

    /// Has workers that are forked from now on import these modules before they serve; they are
    /// looked for in the folders `paths` too. What cannot be imported is told by
    /// [`ClientEvent::NotPreloaded`].
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn preload(
        &mut self,
        modules: Vec<String>,
        paths: Vec<OsString>,
    ) -> Result<(), SupervisorError> {
        self.send(&FromClient::Preload { modules, paths })
    }

    /// Gives the supervisor an order. The answer is one of [`ClientEvent::Status`],
    /// [`ClientEvent::Looked`], [`ClientEvent::Log`], [`ClientEvent::Done`] and [`ClientEvent::Unable`].
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Lost`] when the supervisor is gone.
    pub fn order(&mut self, order: Order) -> Result<(), SupervisorError> {
        self.send(&FromClient::Admin(order))
    }

    /// The events since the last call. Never waits.
    ///
    /// # Errors
    ///
    /// When the supervisor turns this client away, the control socket breaks or the supervisor speaks another version. The connection is of
    /// no use then; make a new one.
    pub fn poll(&mut self) -> Result<Vec<ClientEvent>, SupervisorError> {
        let mut events = Vec::new();
        if self.lost {
            return Ok(events);
        }
        if self.is_foreign() {
            self.lost = true;
            return Ok(vec![ClientEvent::Lost]);
        }
        match self.poll_into(&mut events) {
            Ok(()) => {}
            Err(SupervisorError::Transport(TransportError::Closed | TransportError::Truncated)) => {
                self.lost = true;
                events.push(ClientEvent::Lost);
            }
            Err(error) => {
                self.lost = true;
                return Err(error);
            }
        }
        Ok(events)
    }

    fn poll_into(&mut self, events: &mut Vec<ClientEvent>) -> Result<(), SupervisorError> {
        // Messages are read before a failing write, which would hide them.
        let flushed = self.channel.flush();
        loop {
            match self.channel.receive::<ToClient>()? {
                Received::Message(message, fds) => {
                    let event = match message {
                        ToClient::Hello {
                            version: PROTOCOL_VERSION,
                            welcome,
                        } => ClientEvent::Hello(welcome),
                        ToClient::Hello {
                            version: theirs, ..
                        } => {
                            let ours = PROTOCOL_VERSION;
                            return Err(SupervisorError::Version { theirs, ours });
                        }
                        ToClient::TurnedAway { why } => {
                            return Err(SupervisorError::TurnedAway(why));
                        }
                        ToClient::Link {
                            request,
                            link,
                            worker,
                        } => match link::received(Side::Client, fds)? {
                            Ok((end, process)) => ClientEvent::Link {
                                request,
                                link,
                                worker,
                                end,
                                process,
                            },
                            Err(why) => {
                                self.release(link)?;
                                let reason = Refusal::Failed(why);
                                ClientEvent::Refused { request, reason }
                            }
                        },
                        ToClient::Refused { request, reason } => {
                            ClientEvent::Refused { request, reason }
                        }
                        ToClient::Retired { link } => ClientEvent::LinkRetired { link },
                        ToClient::Leaving { link } => ClientEvent::LinkLeaving { link },
                        ToClient::NotPreloaded { module, why } => {
                            ClientEvent::NotPreloaded { module, why }
                        }
                        ToClient::Died {
                            link,
                            worker,
                            exit,
                            ran,
                            why,
                            stack,
                        } => ClientEvent::WorkerDied {
                            link,
                            worker,
                            exit,
                            ran,
                            why,
                            stack,
                        },
                        ToClient::Status(status) => ClientEvent::Status(status),
                        ToClient::Looked(look) => ClientEvent::Looked(look),
                        ToClient::Log { lines } => ClientEvent::Log(lines),
                        ToClient::Done => ClientEvent::Done,
                        ToClient::Unable { why } => ClientEvent::Unable(why),
                        ToClient::KeyGranted {
                            request,
                            link,
                            grant,
                            fresh,
                        } => ClientEvent::KeyGranted {
                            request,
                            link,
                            grant,
                            fresh,
                        },
                        ToClient::KeyRefused { request, reason } => {
                            ClientEvent::KeyRefused { request, reason }
                        }
                        ToClient::KeyGone { request } => ClientEvent::KeyGone { request },
                    };
                    events.push(event);
                }
                Received::Empty => return Ok(flushed?),
                Received::Closed => return Err(TransportError::Closed.into()),
            }
        }
    }

    /// Whether this is a copy in a forked process: messages that it read would be missing in the parent.
    fn is_foreign(&self) -> bool {
        self.pid != std::process::id()
    }

    fn send(&mut self, message: &FromClient) -> Result<(), SupervisorError> {
        if self.lost || self.is_foreign() {
            return Err(SupervisorError::Lost);
        }
        self.channel
            .send(message, Vec::new())
            .map_err(SupervisorError::from_send)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A copy of the descriptor in some forked process must not keep the conversation open. The
        // copy of the client in such a process must not end it.
        if !self.is_foreign() {
            let fd = self.channel.fd().as_raw_fd();
            // SAFETY: the descriptor is open; the call changes nothing but the socket behind it.
            unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
        }
    }
}

#[cfg(test)]
mod tests;
