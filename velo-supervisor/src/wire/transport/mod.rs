//! Length-prefixed messages over a unix stream socket, with descriptors beside them. It never
//! waits, never trusts a length, and never decides what a message means.
//!
//! A frame is 8 bytes of header (magic, number of descriptors, length) and a MessagePack payload.
//! The descriptors travel with the frame's first byte, so when a frame is complete they are there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::os;
use crate::os::limits::explain;

mod raw;

use raw::{MAX_FDS, Passed};

/// The largest message, header not counted.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;
/// How much may wait for a peer that does not read, before it is given up.
const MAX_QUEUED: usize = 4 << 20;
const HEADER: usize = 8;
const MAGIC: u16 = 0x5645;
const READ_CHUNK: usize = 16 << 10;

/// Why a control socket is unusable.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The system said no.
    #[error("{}", explain(.0))]
    Io(#[from] io::Error),
    /// The peer is gone.
    #[error("the other side has closed it")]
    Closed,
    /// The peer went away in the middle of a message.
    #[error("the other side closed it in the middle of a message")]
    Truncated,
    /// What came is not one of our frames.
    #[error("a frame starts with `{0:#06x}`; the other side is not velo")]
    Magic(u16),
    /// The peer announced a message past the bound.
    #[error("a message of `{len}` bytes is over the limit of `{limit}`")]
    TooLarge {
        /// The length of the message.
        len: usize,
        /// The bound.
        limit: usize,
    },
    /// The peer announced more descriptors than any message has.
    #[error("a message with `{0}` file descriptors is over the limit")]
    TooManyFds(usize),
    /// The system could not pass descriptors on.
    #[error(
        "file descriptors were lost on the way; raise the limit of open files (`ulimit -n`, \
         `LimitNOFILE=`)"
    )]
    FdsLost,
    /// The payload is not the message that was expected.
    #[error("a message could not be read: {0}")]
    Decode(String),
    /// The message could not be written as MessagePack.
    #[error("a message could not be written: {0}")]
    Encode(String),
    /// The peer began a message and did not go on.
    #[error("the other side has left a message unfinished for `{}` s", .0.as_secs_f64())]
    Unfinished(Duration),
    /// The peer does not read its messages.
    #[error("the other side does not read; `{0}` bytes are waiting for it")]
    Stalled(usize),
}

/// What a look at the socket brought.
#[derive(Debug)]
pub(crate) enum Received<M> {
    /// A message, and the descriptors that came with it: none of them where this process had no room
    /// for all.
    Message(M, Vec<OwnedFd>),
    /// No complete message is there now.
    Empty,
    /// The other side has closed it, after a complete message.
    Closed,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// One end of a control socket, non-blocking.
#[derive(Debug)]
pub(crate) struct Channel<F> {
    fd: F,
    input: Vec<u8>,
    /// Where the unread part of `input` starts.
    read: usize,
    input_fds: VecDeque<Passed>,
    ended: bool,
    output: VecDeque<Outgoing>,
    queued: usize,
}

impl<F: AsFd> Channel<F> {
    pub(crate) fn new(fd: F) -> io::Result<Self> {
        os::set_nonblocking(fd.as_fd())?;
        os::close_on_exec(fd.as_fd())?;
        Ok(Self {
            fd,
            input: Vec::new(),
            read: 0,
            input_fds: VecDeque::new(),
            ended: false,
            output: VecDeque::new(),
            queued: 0,
        })
    }

    pub(crate) fn fd(&self) -> &F {
        &self.fd
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Queues a message and sends what the socket takes now; [`Channel::flush`] sends the rest.
    pub(crate) fn send<M: Serialize>(
        &mut self,
        message: &M,
        fds: Vec<OwnedFd>,
    ) -> Result<(), TransportError> {
        if fds.len() > MAX_FDS {
            return Err(TransportError::TooManyFds(fds.len()));
        }
        let mut bytes = vec![0; HEADER];
        rmp_serde::encode::write_named(&mut bytes, message)
            .map_err(|error| TransportError::Encode(error.to_string()))?;
        let len = bytes.len() - HEADER;
        if len > MAX_MESSAGE {
            return Err(TransportError::TooLarge {
                len,
                limit: MAX_MESSAGE,
            });
        }
        if self.queued + bytes.len() > MAX_QUEUED {
            return Err(TransportError::Stalled(self.queued));
        }
        bytes[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        // Both fit: the bounds were checked above.
        bytes[2..4].copy_from_slice(&(fds.len() as u16).to_le_bytes());
        bytes[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        self.queued += bytes.len();
        self.output.push_back(Outgoing {
            bytes,
            sent: 0,
            fds,
        });
        self.flush()
    }

    /// Whether a message waits for the socket to take it.
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Sends what the socket takes now.
    pub(crate) fn flush(&mut self) -> Result<(), TransportError> {
        while let Some(first) = self.output.front_mut() {
            let sent = match raw::send(self.fd.as_fd(), &first.bytes[first.sent..], &first.fds) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if raw::is_closed(&error) => return Err(TransportError::Closed),
                Err(error) => return Err(error.into()),
            };
            // The descriptors went with the first byte.
            first.fds.clear();
            first.sent += sent;
            self.queued -= sent;
            if first.sent == first.bytes.len() {
                self.output.pop_front();
            }
        }
        Ok(())
    }

    /// Whether a message has begun to arrive whose rest is not there.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.read < self.input.len()
    }

    /// The next message, if a complete one is there.
    pub(crate) fn receive<M: DeserializeOwned>(&mut self) -> Result<Received<M>, TransportError> {
        loop {
            if let Some((start, end, fds)) = self.next_frame()? {
                let message = decode(&self.input[start..end])?;
                self.read = end;
                return Ok(Received::Message(message, self.take_fds(fds)));
            }
            if self.ended {
                let clean = self.read == self.input.len();
                return if clean {
                    Ok(Received::Closed)
                } else {
                    Err(TransportError::Truncated)
                };
            }
            if !self.fill()? {
                return Ok(Received::Empty);
            }
        }
    }

    /// The payload of the next complete frame, and how many descriptors belong to it.
    fn next_frame(&self) -> Result<Option<(usize, usize, usize)>, TransportError> {
        let unread = &self.input[self.read..];
        let Some((header, rest)) = unread.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let magic = u16::from_le_bytes([header[0], header[1]]);
        if magic != MAGIC {
            return Err(TransportError::Magic(magic));
        }
        let fds = usize::from(u16::from_le_bytes([header[2], header[3]]));
        if fds > MAX_FDS {
            return Err(TransportError::TooManyFds(fds));
        }
        let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if len > MAX_MESSAGE {
            return Err(TransportError::TooLarge {
                len,
                limit: MAX_MESSAGE,
            });
        }
        if rest.len() < len {
            return Ok(None);
        }
        let whole = match self.input_fds.front() {
            Some(Passed::Lost) => true,
            _ => {
                let passed = self.input_fds.iter().take(fds);
                passed.filter(|fd| matches!(fd, Passed::Fd(_))).count() == fds
            }
        };
        if !whole {
            return Err(TransportError::FdsLost);
        }
        let start = self.read + HEADER;
        Ok(Some((start, start + len, fds)))
    }

    /// The descriptors of a message that announces so many; none if they were lost.
    fn take_fds(&mut self, announced: usize) -> Vec<OwnedFd> {
        if announced > 0 && matches!(self.input_fds.front(), Some(Passed::Lost)) {
            self.input_fds.pop_front();
            return Vec::new();
        }
        let passed = self.input_fds.drain(..announced);
        passed
            .filter_map(|passed| match passed {
                Passed::Fd(fd) => Some(fd),
                Passed::Lost => None,
            })
            .collect()
    }

    /// Reads once. False when nothing was there.
    fn fill(&mut self) -> Result<bool, TransportError> {
        self.input.drain(..self.read);
        self.read = 0;
        let old = self.input.len();
        self.input.resize(old + READ_CHUNK, 0);
        let outcome = raw::receive(self.fd.as_fd(), &mut self.input[old..], &mut self.input_fds);
        self.input
            .truncate(old + outcome.as_ref().copied().unwrap_or(0));
        match outcome {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    // An idle channel costs no memory.
                    if self.input.is_empty() {
                        self.input = Vec::new();
                    }
                    return Ok(false);
                }
                io::ErrorKind::Interrupted => {}
                _ if raw::is_closed(&error) => self.ended = true,
                _ => return Err(error.into()),
            },
        }
        // Descriptors that no frame announces are a peer's mistake or malice.
        if self.input_fds.len() > 2 * MAX_FDS {
            return Err(TransportError::TooManyFds(self.input_fds.len()));
        }
        Ok(true)
    }
}

fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, TransportError> {
    let mut reader = rmp_serde::Deserializer::new(payload);
    let message =
        M::deserialize(&mut reader).map_err(|error| TransportError::Decode(error.to_string()))?;
    match reader.get_ref().len() {
        0 => Ok(message),
        rest => Err(TransportError::Decode(format!("`{rest}` bytes follow it"))),
    }
}

/// Takes exactly `N` descriptors out of what came with a message.
pub(crate) fn exactly<const N: usize>(fds: Vec<OwnedFd>) -> Result<[OwnedFd; N], TransportError> {
    <[OwnedFd; N]>::try_from(fds).map_err(|fds| match fds.len() {
        0 => TransportError::FdsLost,
        len => TransportError::Decode(format!("it came with {len} descriptors instead of {N}")),
    })
}

/// The same, and one more where it came.
pub(crate) fn exactly_and_maybe<const N: usize>(
    mut fds: Vec<OwnedFd>,
) -> Result<([OwnedFd; N], Option<OwnedFd>), TransportError> {
    let more = (fds.len() == N + 1).then(|| fds.pop()).flatten();
    Ok((exactly(fds)?, more))
}

/// The two ends of a new control socket.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    raw::pair()
}

#[cfg(test)]
mod tests;
