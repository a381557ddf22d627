//! Control messages between a client and a worker, on the rings of slot 0. They cost no system
//! call, so that opening a stream on a warm worker costs none either.

use crate::wire::protocol::Key;
use velo_shm::{Consumer, Limits, Link, LinkError, Producer, ReserveError, RingCorrupted};

/// The slot that no stream uses.
pub const SLOT: u32 = 0;

/// In the slots of streams: an event or a result.
pub const ITEM: u8 = 2;
/// Nothing more comes in this direction.
pub const END: u8 = 3;
/// The function failed: its exception, and the end.
pub const ERROR: u8 = 4;
/// A snapshot of a function's state: after what it covers, or before the first event.
pub const STATE: u8 = 5;

/// How much both directions, and the log records, may hold before a peer counts as stuck.
const LIMITS: Limits = Limits {
    events: 10_000,
    bytes: 256 << 20,
};

/// One message.
#[derive(Debug, PartialEq)]
pub enum Control {
    /// Client: streams may be opened of this function from now on.
    Define { function: u64, definition: Vec<u8> },
    /// Client: a stream begins. `stream` tells it from others that use its slot before or after.
    Open {
        stream: u64,
        slot: u32,
        function: u64,
        buffer: u32,
        max_bytes: u64,
        /// Events may become unwanted while they are queued.
        drops: bool,
        /// Another worker takes over when this one dies.
        recovers: bool,
        /// A snapshot comes before the first event.
        restored: bool,
        /// It runs the function for many keys: its frames are those of a lane.
        lane: bool,
        /// Milliseconds of `stall_timeout` and `event_timeout`; 0 for none.
        stall_ms: u64,
        event_ms: u64,
        name: String,
    },
    /// Client: a snapshot of this stream's state is wanted, as soon as its function is done with
    /// something.
    Snapshot { slot: u32, stream: u64 },
    /// Client: the function of this stream is not wanted any more.
    Cancel { slot: u32 },
    /// Client: the end of this stream was seen, and its rings are released.
    Close { slot: u32 },
    /// Client: log what it would handle; what its Python half packed.
    Levels { packed: Vec<u8> },
    /// Client: where it is (folder, environment, where modules are found); what its Python half packed.
    Surroundings { packed: Vec<u8> },
    /// Client: no stream is opened of this function any more.
    Forget { function: u64 },
    /// Client: attach the stream that is opened next to the session of this key.
    Attach {
        key: Key,
        /// The supervisor's number of this attachment.
        grant: u64,
        /// Milliseconds that the session may stay detached; 0 for no limit.
        timeout_ms: u64,
        /// The key as its user wrote it, for people who look.
        shown: String,
        /// How a checkpoint knows the session; what the client's Python half packed. Empty for a function
        /// without a state.
        stored: Vec<u8>,
    },
    /// Client: detach this stream from its session. The function still handles the events in the ring;
    /// its results are dropped. `Ended` follows when that is done.
    Detach { slot: u32, stream: u64 },
    /// Worker: a log record, as its Python half packed it.
    Log { record: Vec<u8> },
    /// Worker: a step of this stream's function took `ms` milliseconds.
    Slow {
        slot: u32,
        stream: u64,
        /// Others are open there, which had to wait; it has not been said for a while.
        held_up: bool,
        /// It is one of several within a while.
        habit: bool,
        ms: u64,
    },
    /// Worker: the function of this stream has asked for its first event.
    Asked { slot: u32, stream: u64 },
    /// Worker: the function of this stream has ended; results may still be queued.
    Ended { slot: u32, stream: u64 },
}

const DEFINE: u8 = 2;
const OPEN: u8 = 3;
const CANCEL: u8 = 4;
const CLOSE: u8 = 5;
const ENDED: u8 = 6;
const ASKED: u8 = 7;
const LOG: u8 = 8;
const LEVELS: u8 = 9;
const SNAPSHOT: u8 = 10;
const SLOW: u8 = 11;
const SURROUNDINGS: u8 = 12;
const FORGET: u8 = 13;

const ATTACH: u8 = 20;
const DETACH: u8 = 21;

/// What an `Open` says by one bit each.
const DROPS: u8 = 1;
const RECOVERS: u8 = 2;
const RESTORED: u8 = 4;
const LANE: u8 = 8;

/// Why a peer's control messages are no use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The ring is damaged.
    #[error(transparent)]
    Ring(#[from] RingCorrupted),
    /// A message is none.
    #[error("a control message of kind {0} makes no sense")]
    Senseless(u8),
}

/// The control rings of a link.
///
/// # Errors
///
/// When the link cannot be used.
pub fn open(end: &Link) -> Result<(Producer, Consumer), LinkError> {
    end.open_slot(SLOT, LIMITS)
}

/// Queues and publishes a message. The caller notifies.
///
/// # Errors
///
/// When the other side does not read its messages.
pub fn send(producer: &mut Producer, message: &Control) -> Result<(), ReserveError> {
    let (kind, bytes) = message.encode();
    // Log records are counted: a client that does not read them does not get ever more.
    let counted = kind == LOG;
    let mut room = producer.reserve(bytes.len(), counted)?;
    room[..bytes.len()].copy_from_slice(&bytes);
    room.commit(kind, bytes.len());
    producer.publish();
    Ok(())
}

/// The next message, if one is there.
///
/// # Errors
///
/// When the ring is damaged, or the message is none.
pub fn receive(consumer: &mut Consumer) -> Result<Option<Control>, ControlError> {
    let Some(frame) = consumer.peek()? else {
        consumer.publish();
        return Ok(None);
    };
    let (kind, message) = (frame.kind, Control::decode(frame.kind, frame.payload));
    consumer.release();
    message.map(Some).ok_or(ControlError::Senseless(kind))
}

impl Control {
    pub(crate) fn encode(&self) -> (u8, Vec<u8>) {
        let mut bytes = Vec::with_capacity(32);
        let kind = match self {
            Control::Define {
                function,
                definition,
            } => {
                bytes.extend_from_slice(&function.to_le_bytes());
                bytes.extend_from_slice(definition);
                DEFINE
            }
            Control::Open {
                stream,
                slot,
                function,
                buffer,
                max_bytes,
                drops,
                recovers,
                restored,
                lane,
                stall_ms,
                event_ms,
                name,
            } => {
                let flag = |set: bool, bit: u8| if set { bit } else { 0 };
                bytes.extend_from_slice(&slot.to_le_bytes());
                bytes.extend_from_slice(&stream.to_le_bytes());
                bytes.extend_from_slice(&buffer.to_le_bytes());
                bytes.extend_from_slice(&function.to_le_bytes());
                bytes.extend_from_slice(&max_bytes.to_le_bytes());
                bytes.push(
                    flag(*drops, DROPS)
                        | flag(*recovers, RECOVERS)
                        | flag(*restored, RESTORED)
                        | flag(*lane, LANE),
                );
                bytes.extend_from_slice(&stall_ms.to_le_bytes());
                bytes.extend_from_slice(&event_ms.to_le_bytes());
                bytes.extend_from_slice(name.as_bytes());
                OPEN
            }
            Control::Levels { packed } => {
                bytes.extend_from_slice(packed);
                LEVELS
            }
            Control::Surroundings { packed } => {
                bytes.extend_from_slice(packed);
                SURROUNDINGS
            }
            Control::Forget { function } => {
                bytes.extend_from_slice(&function.to_le_bytes());
                FORGET
            }
            Control::Log { record } => {
                bytes.extend_from_slice(record);
                LOG
            }
            Control::Cancel { slot } => {
                bytes.extend_from_slice(&slot.to_le_bytes());
                CANCEL
            }
            Control::Close { slot } => {
                bytes.extend_from_slice(&slot.to_le_bytes());
                CLOSE
            }
            Control::Ended { slot, stream } => {
                bytes.extend_from_slice(&stream.to_le_bytes());
                bytes.extend_from_slice(&slot.to_le_bytes());
                ENDED
            }
            Control::Slow {
                slot,
                stream,
                held_up,
                habit,
                ms,
            } => {
                bytes.extend_from_slice(&stream.to_le_bytes());
                bytes.extend_from_slice(&slot.to_le_bytes());
                bytes.extend_from_slice(&[u8::from(*held_up), u8::from(*habit)]);
                bytes.extend_from_slice(&ms.to_le_bytes());
                SLOW
            }
            Control::Asked { slot, stream } => {
                bytes.extend_from_slice(&stream.to_le_bytes());
                bytes.extend_from_slice(&slot.to_le_bytes());
                ASKED
            }
            Control::Snapshot { slot, stream } => {
                bytes.extend_from_slice(&stream.to_le_bytes());
                bytes.extend_from_slice(&slot.to_le_bytes());
                SNAPSHOT
            }
            Control::Attach {
                key,
                grant,
                timeout_ms,
                shown,
                stored,
            } => {
                bytes.extend_from_slice(&key.0);
                bytes.extend_from_slice(&grant.to_le_bytes());
                bytes.extend_from_slice(&timeout_ms.to_le_bytes());
                let length = u32::try_from(stored.len()).unwrap_or(0);
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(&stored[..length as usize]);
                bytes.extend_from_slice(shown.as_bytes());
                ATTACH
            }
            Control::Detach { slot, stream } => {
                bytes.extend_from_slice(&stream.to_le_bytes());
                bytes.extend_from_slice(&slot.to_le_bytes());
                DETACH
            }
        };
        (kind, bytes)
    }

    pub(crate) fn decode(kind: u8, mut bytes: &[u8]) -> Option<Control> {
        let bytes = &mut bytes;
        let message = match kind {
            DEFINE => {
                let function = u64::from_le_bytes(take(bytes)?);
                let definition = std::mem::take(bytes).to_vec();
                Control::Define {
                    function,
                    definition,
                }
            }
            OPEN => {
                let slot = u32::from_le_bytes(take(bytes)?);
                let stream = u64::from_le_bytes(take(bytes)?);
                let buffer = u32::from_le_bytes(take(bytes)?);
                let function = u64::from_le_bytes(take(bytes)?);
                let max_bytes = u64::from_le_bytes(take(bytes)?);
                let [flags] = take(bytes)?;
                let stall_ms = u64::from_le_bytes(take(bytes)?);
                let event_ms = u64::from_le_bytes(take(bytes)?);
                let name = String::from_utf8_lossy(std::mem::take(bytes)).into_owned();
                Control::Open {
                    stream,
                    slot,
                    function,
                    buffer,
                    max_bytes,
                    drops: flags & DROPS != 0,
                    recovers: flags & RECOVERS != 0,
                    restored: flags & RESTORED != 0,
                    lane: flags & LANE != 0,
                    stall_ms,
                    event_ms,
                    name,
                }
            }
            LEVELS => Control::Levels {
                packed: std::mem::take(bytes).to_vec(),
            },
            SURROUNDINGS => Control::Surroundings {
                packed: std::mem::take(bytes).to_vec(),
            },
            FORGET => Control::Forget {
                function: u64::from_le_bytes(take(bytes)?),
            },
            LOG => Control::Log {
                record: std::mem::take(bytes).to_vec(),
            },
            CANCEL => Control::Cancel {
                slot: u32::from_le_bytes(take(bytes)?),
            },
            CLOSE => Control::Close {
                slot: u32::from_le_bytes(take(bytes)?),
            },
            ENDED => {
                let stream = u64::from_le_bytes(take(bytes)?);
                Control::Ended {
                    slot: u32::from_le_bytes(take(bytes)?),
                    stream,
                }
            }
            SLOW => {
                let stream = u64::from_le_bytes(take(bytes)?);
                let slot = u32::from_le_bytes(take(bytes)?);
                let [held_up, habit] = take(bytes)?;
                let ms = u64::from_le_bytes(take(bytes)?);
                Control::Slow {
                    slot,
                    stream,
                    held_up: held_up != 0,
                    habit: habit != 0,
                    ms,
                }
            }
            ASKED => {
                let stream = u64::from_le_bytes(take(bytes)?);
                Control::Asked {
                    slot: u32::from_le_bytes(take(bytes)?),
                    stream,
                }
            }
            SNAPSHOT => {
                let stream = u64::from_le_bytes(take(bytes)?);
                Control::Snapshot {
                    slot: u32::from_le_bytes(take(bytes)?),
                    stream,
                }
            }
            ATTACH => Control::Attach {
                key: Key(take(bytes)?),
                grant: u64::from_le_bytes(take(bytes)?),
                timeout_ms: u64::from_le_bytes(take(bytes)?),
                stored: {
                    let length = u32::from_le_bytes(take(bytes)?) as usize;
                    bytes.split_off(..length)?.to_vec()
                },
                shown: String::from_utf8_lossy(std::mem::take(bytes)).into_owned(),
            },
            DETACH => {
                let stream = u64::from_le_bytes(take(bytes)?);
                Control::Detach {
                    slot: u32::from_le_bytes(take(bytes)?),
                    stream,
                }
            }
            _ => return None,
        };
        bytes.is_empty().then_some(message)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}
