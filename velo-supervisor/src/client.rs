//! The client's handle: asks the supervisor for links and hears what becomes of them. It never
//! waits; its descriptor says when to look.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use velo_shm::{Link, Side};

use crate::error::SupervisorError;
use crate::os::exit::Exit;
use crate::os::fds::{InChild, TrackedFd};
use crate::os::peer;
use crate::runtime_folder::with_short_path;
use crate::wire::link;
use crate::wire::protocol::{
    FromClient, Key, KeyRefusal, Killed, LinkId, Order, PROTOCOL_VERSION, Ran, Refusal, RequestId,
    Status, ToClient, Welcome, WorkerInfo, WorkerLook,
};
use crate::wire::transport::{Channel, Received, TransportError};

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

/// What the supervisor tells a client.
#[derive(Debug)]
pub enum ClientEvent {
    /// The supervisor's greeting: the first event.
    Hello(Welcome),
    /// A request is met.
    Link {
        /// The request.
        request: RequestId,
        /// The link's identity.
        link: LinkId,
        /// The worker on its other side.
        worker: WorkerInfo,
        /// This side of it.
        end: Link,
        /// From a standalone supervisor: a pidfd of the worker, readable when it has ended. It tells
        /// of that also when the supervisor is gone, which its workers outlive.
        process: Option<OwnedFd>,
    },
    /// A request cannot be met.
    Refused {
        /// The request.
        request: RequestId,
        /// Why not.
        reason: Refusal,
    },
    /// The link had no open stream for the idle timeout, and is gone. Ask for another one.
    LinkRetired {
        /// The link.
        link: LinkId,
    },
    /// The worker has outgrown what its streams allow: it takes no more of them, and is stopped once
    /// the last one has ended. Ask for another link for new ones.
    LinkLeaving {
        /// The link.
        link: LinkId,
    },
    /// The worker is dead, and with it all streams on the link.
    WorkerDied {
        /// The link.
        link: LinkId,
        /// The worker.
        worker: WorkerInfo,
        /// How it ended.
        exit: Exit,
        /// Which stream function it ran; the link's board says more of one that ran here.
        ran: Ran,
        /// What the supervisor has killed it for, if it did.
        why: Option<Killed>,
        /// The stacks of its threads as it died, if it could still write them.
        stack: String,
    },
    /// A module that some client asked for cannot be preloaded; workers go on without it.
    NotPreloaded {
        /// The module.
        module: String,
        /// Why not.
        why: String,
    },
    /// The answer to [`Order::Status`].
    Status(Status),
    /// A look at one worker, for [`Order::Look`]; after the last one comes [`ClientEvent::Done`].
    Looked(WorkerLook),
    /// Lines of the supervisor's log, for [`Order::Logs`].
    Log(Vec<String>),
    /// The supervisor has accepted an [`Order`].
    Done,
    /// The supervisor cannot obey an [`Order`], and says why.
    Unable(String),
    /// A request for a key is met. What is opened on the link under this key and grant, at once, is
    /// attached to what is kept there.
    KeyGranted {
        /// The request.
        request: RequestId,
        /// The link to the worker that has it.
        link: LinkId,
        /// The number of this attachment.
        grant: u64,
        /// Nothing was kept there before.
        fresh: bool,
    },
    /// A request for a key is not met.
    KeyRefused {
        /// The request.
        request: RequestId,
        /// Why not.
        reason: KeyRefusal,
    },
    /// What was begun by a request for a key, which was `fresh`, has ended.
    KeyGone {
        /// The request.
        request: RequestId,
    },
    /// The supervisor is gone. Said once. Workers of an embedded one are gone with it; those of a
    /// standalone one serve the existing links until their streams have ended.
    Lost,
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

    /// Connects to the standalone supervisor that listens at `path`. Waits for nothing: what the
    /// supervisor is comes as [`ClientEvent::Hello`].
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Nobody`] when no supervisor listens there, and
    /// [`SupervisorError::Foreign`] when it is another user's: what it would have this process run
    /// is not to be trusted.
    pub fn connect(path: &Path) -> Result<Self, SupervisorError> {
        let connected = with_short_path(path, |path| UnixStream::connect(path));
        let socket = connected.map_err(|source| SupervisorError::Nobody {
            path: path.to_owned(),
            source,
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

    /// Readable when [`Client::poll`] has something to say.
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

    /// What has happened since the last call. Never waits.
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
        // What is to be read comes before a failing write, which would hide it.
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

    /// Whether this is a copy in a forked process: what it read would be missing in the parent.
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
mod tests {
    use super::*;
    use crate::wire::transport;

    /// A client and its supervisor's end.
    fn client() -> (Client, Channel<std::os::fd::OwnedFd>) {
        let (here, there) = transport::pair().expect("a socketpair");
        let client = Client::new(TrackedFd::new(here, InChild::Replace)).expect("a client");
        (client, Channel::new(there).expect("a channel"))
    }

    fn hello(version: u32) -> ToClient {
        let welcome = Welcome::default();
        ToClient::Hello { version, welcome }
    }

    #[test]
    fn one_that_is_turned_away_hears_why() {
        let (here, there) = transport::pair().expect("a socketpair");
        let mut supervisor = Channel::new(there).expect("a channel");
        let why = "too many".into();
        supervisor
            .send(&ToClient::TurnedAway { why }, Vec::new())
            .expect("send");
        drop(supervisor);
        let mut client = Client::new(TrackedFd::new(here, InChild::Replace)).expect("a client");
        let error = client.poll().expect_err("turned away").to_string();
        assert!(error.contains("too many"), "{error}");
    }

    #[test]
    fn nobody_at_the_path_is_said_with_the_path() {
        let error = Client::connect(Path::new("/nowhere/at.sock")).expect_err("nobody");
        assert!(matches!(error, SupervisorError::Nobody { .. }));
        assert!(error.to_string().contains("/nowhere/at.sock"));
    }

    #[test]
    fn it_says_hello_first_and_then_what_it_is_asked() {
        let (mut client, mut supervisor) = client();
        let request = client.acquire(3).expect("acquire");
        client.release(LinkId(9)).expect("release");
        let mut said = Vec::new();
        while let Ok(Received::Message(message, _)) = supervisor.receive::<FromClient>() {
            said.push(message);
        }
        assert!(matches!(
            said[0],
            FromClient::Hello {
                version: PROTOCOL_VERSION
            }
        ));
        assert!(
            matches!(said[1], FromClient::Acquire { request: r, max_workers: 3 } if r == request)
        );
        assert!(matches!(
            said[2],
            FromClient::Release {
                link: LinkId(9),
                broken: false
            }
        ));
    }

    #[test]
    fn handles_may_move_to_other_threads() {
        fn movable<T: Send>() {}
        movable::<Client>();
        movable::<ClientEvent>();
        movable::<crate::WorkerControl>();
        movable::<crate::WorkerControlEvent>();
    }

    #[test]
    fn another_version_is_named() {
        let (mut client, mut supervisor) = client();
        let version = PROTOCOL_VERSION + 1;
        supervisor.send(&hello(version), Vec::new()).expect("send");
        let error = client.poll().expect_err("another version").to_string();
        assert!(error.contains(&format!("version `{version}`")), "{error}");
        assert!(matches!(client.acquire(1), Err(SupervisorError::Lost)));
    }

    #[test]
    fn the_end_is_said_once_and_after_the_rest() {
        let (mut client, mut supervisor) = client();
        supervisor
            .send(&ToClient::Retired { link: LinkId(4) }, Vec::new())
            .expect("send");
        drop(supervisor);
        let events = client.poll().expect("the rest");
        assert!(matches!(
            events[..],
            [
                ClientEvent::LinkRetired { link: LinkId(4) },
                ClientEvent::Lost
            ]
        ));
        assert!(client.poll().expect("nothing more").is_empty());
    }

    #[test]
    fn a_link_that_cannot_be_mapped_is_refused_and_given_back() {
        let (mut client, mut supervisor) = client();
        let request = client.acquire(1).expect("acquire");
        let (one, two) = transport::pair().expect("a socketpair");
        let three = one.try_clone().expect("a copy");
        let link = LinkId(1);
        let worker = WorkerInfo { id: 1, pid: 1 };
        let message = ToClient::Link {
            request,
            link,
            worker,
        };
        supervisor
            .send(&message, vec![one, two, three])
            .expect("send");
        let events = client.poll().expect("an answer");
        assert!(matches!(
            events[..],
            [ClientEvent::Refused {
                reason: Refusal::Failed(_),
                ..
            }]
        ));
        let mut said = Vec::new();
        while let Ok(Received::Message(message, _)) = supervisor.receive::<FromClient>() {
            said.push(message);
        }
        assert!(matches!(
            said.last(),
            Some(FromClient::Release {
                link: LinkId(1),
                ..
            })
        ));
    }

    #[test]
    fn a_link_without_all_of_its_descriptors_is_an_error() {
        let (mut client, mut supervisor) = client();
        let worker = WorkerInfo { id: 1, pid: 1 };
        let message = ToClient::Link {
            request: RequestId(1),
            link: LinkId(1),
            worker,
        };
        let (one, _) = transport::pair().expect("a socketpair");
        supervisor.send(&message, vec![one]).expect("send");
        assert!(matches!(client.poll(), Err(SupervisorError::Transport(_))));
    }

    #[test]
    fn a_link_whose_descriptors_were_lost_is_refused_and_the_rest_goes_on() {
        let (mut client, mut supervisor) = client();
        let worker = WorkerInfo { id: 1, pid: 1 };
        let (request, link) = (RequestId(1), LinkId(1));
        let message = ToClient::Link {
            request,
            link,
            worker,
        };
        supervisor.send(&message, Vec::new()).expect("send");
        supervisor
            .send(&ToClient::Retired { link: LinkId(4) }, Vec::new())
            .expect("send");
        let events = client.poll().expect("an answer");
        let [
            ClientEvent::Refused {
                reason: Refusal::Failed(why),
                ..
            },
            ClientEvent::LinkRetired { link: LinkId(4) },
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert!(why.contains("ulimit -n"), "{why}");
    }
}
