//! The client's end of a link, and the streams that are open on it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use velo_shm::{Consumer, Limits, LinkError, LinkLoad, Producer, ReserveError, woke_worker};

use super::error::{StreamError, WorkerDied};
use super::options::StreamOptions;
use super::quota::Counted;
use crate::client_side::{SlotTable, mend};
use crate::os::exit::Exit;
use crate::os::limits::explain;
use crate::wire::control::{self, Control, END, ERROR};
use crate::wire::protocol::{Killed, LinkId, Ran, WorkerInfo};

/// The news of a stream from other threads.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The function takes no more events; results may still be queued.
    pub(super) ended: AtomicBool,
    /// The function has asked for its first event.
    pub(super) asked: AtomicBool,
    /// Nothing comes after what is queued, and why.
    pub(super) failure: OnceLock<Failure>,
}

/// Why a stream has lost its worker.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Died(WorkerDied),
    Corrupted(String),
}

impl From<Failure> for StreamError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Died(died) => Self::WorkerDied(died),
            Failure::Corrupted(what) => Self::Corrupted(what),
        }
    }
}

/// Both rings of a stream.
#[derive(Debug)]
pub(super) struct RingPair {
    pub(super) producer: Producer,
    pub(super) consumer: Consumer,
}

/// A stream that was opened.
#[derive(Debug)]
pub(super) struct OpenedStream {
    /// The hub's name for the link.
    pub(super) key: u64,
    pub(super) end: velo_shm::Link,
    pub(super) slot: u32,
    pub(super) rings: RingPair,
    pub(super) told: Arc<Told>,
}

/// How a worker has died.
pub(super) struct Death {
    pub(super) exit: Exit,
    pub(super) ran: Ran,
    pub(super) why: Option<Killed>,
    pub(super) stack: String,
}

/// A stream that is open, or that was let go of before its end.
#[derive(Debug)]
struct Slot {
    number: u64,
    name: String,
    told: Arc<Told>,
    limited: bool,
    /// Its rings, once its owner has dropped it.
    left: Option<RingPair>,
    _counted: Counted,
}

/// One link.
#[derive(Debug)]
pub(super) struct ClientLink {
    pub(super) key: u64,
    /// None once the supervisor that knew it is gone.
    pub(super) id: Option<LinkId>,
    pub(super) worker: WorkerInfo,
    pub(super) end: velo_shm::Link,
    load: LinkLoad,
    /// Readable when the worker has ended.
    pub(super) process: Option<OwnedFd>,
    /// It takes no more streams.
    pub(super) leaving: bool,
    /// The strictest limits that were sent to the supervisor.
    pub(super) limits: Watched,
    out: Producer,
    inward: Consumer,
    functions: HashMap<Vec<u8>, u64>,
    slots: SlotTable<Slot>,
    opened: u64,
}

impl ClientLink {
    pub(super) fn new(
        key: u64,
        id: LinkId,
        worker: WorkerInfo,
        end: velo_shm::Link,
        process: Option<OwnedFd>,
    ) -> Result<Self, String> {
        let (out, inward) = control::open(&end).map_err(|error| error.to_string())?;
        Ok(Self {
            key,
            id: Some(id),
            worker,
            load: LinkLoad::new(&end),
            end,
            process,
            leaving: false,
            limits: Watched::default(),
            out,
            inward,
            functions: HashMap::new(),
            slots: SlotTable::default(),
            opened: 0,
        })
    }

    fn tell(&mut self, message: &Control) -> Result<(), StreamError> {
        control::send(&mut self.out, message).map_err(|refused| match refused {
            ReserveError::Corrupted(found) => found.into(),
            refused => StreamError::Pool(format!(
                "the worker does not read its control messages: {refused}"
            )),
        })?;
        if self.end.notify(control::SLOT) {
            woke_worker();
        }
        Ok(())
    }

    /// Opens a stream. None when the link takes no more.
    pub(super) fn open(
        &mut self,
        definition: &[u8],
        name: &str,
        options: &StreamOptions,
        counted: Counted,
    ) -> Result<Option<OpenedStream>, StreamError> {
        self.check().map_err(StreamError::Corrupted)?;
        if !self.end.enter() {
            return Ok(None);
        }
        match self.open_inside(definition, name, options, counted) {
            Ok(place) => Ok(Some(place)),
            Err(error) => {
                self.end.leave();
                Err(error)
            }
        }
    }

    fn open_inside(
        &mut self,
        definition: &[u8],
        name: &str,
        options: &StreamOptions,
        counted: Counted,
    ) -> Result<OpenedStream, StreamError> {
        let function = match self.functions.get(definition) {
            Some(number) => *number,
            None => {
                let function = self.functions.len() as u64 + 1;
                let definition = definition.to_vec();
                self.tell(&Control::Define {
                    function,
                    definition: definition.clone(),
                })?;
                self.functions.insert(definition, function);
                function
            }
        };
        let max_bytes = options.max_bytes.clamp(4096, 1 << 33).next_power_of_two();
        let limits = Limits {
            events: options.buffer.max(1),
            bytes: max_bytes,
        };
        let slot = self.slots.take(&self.end).map_err(cannot_open)?.ok_or_else(|| {
            let most = self.end.slots() - 1;
            StreamError::Pool(format!(
                "one worker cannot hold more than {most} streams of one connection; use more workers"
            ))
        })?;
        let (producer, consumer) = self.end.open_slot(slot, limits).map_err(|error| {
            self.slots.give_back(slot);
            cannot_open(error)
        })?;
        let number = self.opened;
        self.opened += 1;
        let opened = self.tell(&Control::Open {
            stream: number,
            slot,
            function,
            buffer: limits.events,
            max_bytes,
            drops: false,
            recovers: false,
            restored: false,
            lane: false,
            stall_ms: milliseconds(options.stall_timeout),
            event_ms: milliseconds(options.event_timeout),
            name: name.to_owned(),
        });
        if let Err(error) = opened {
            self.slots.give_back(slot);
            return Err(error);
        }
        let told = Arc::new(Told::default());
        self.slots.insert(
            slot,
            Slot {
                number,
                name: name.to_owned(),
                told: told.clone(),
                limited: Watched::of(options) != Watched::default(),
                left: None,
                _counted: counted,
            },
        );
        self.load.set_busy(true);
        Ok(OpenedStream {
            key: self.key,
            end: self.end.clone(),
            slot,
            rings: RingPair { producer, consumer },
            told,
        })
    }

    /// How many streams this side has opened and not seen the end of: not the shared count, which the
    /// worker could write over.
    pub(super) fn streams(&self) -> usize {
        self.slots.len() as usize
    }

    /// Whether the link still says of itself what this side knows; why not, if it does not.
    fn check(&self) -> Result<(), String> {
        let sound = self.slots.check(&self.end);
        sound.map_err(|unsound| unsound.to_string())
    }

    /// Looks at what a worker that writes over flags and bits could hide. For now and then.
    pub(super) fn check_up(&self) -> Result<(), String> {
        if !self.slots.is_empty() {
            self.check()?;
            mend(&self.end, self.end.worker_input_waits());
        }
        Ok(())
    }

    /// The slots of its streams.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().map(|(slot, _)| slot)
    }

    /// Looks at what the worker has told, and names the streams that it is about. An error says why
    /// the link is of no use any more.
    pub(super) fn look(&mut self, mut told: impl FnMut(u32)) -> Result<(), String> {
        let mut ready = Vec::new();
        self.end.take_ready(|slot| ready.push(slot));
        for slot in ready {
            if slot == control::SLOT {
                self.read_control(&mut told)?;
            } else if self.slots.get(slot).is_some_and(|open| open.left.is_none()) {
                told(slot);
            } else {
                self.drain(slot);
            }
        }
        Ok(())
    }

    fn read_control(&mut self, told: &mut impl FnMut(u32)) -> Result<(), String> {
        loop {
            let message = control::receive(&mut self.inward).map_err(|error| error.to_string())?;
            match message {
                None => return Ok(()),
                Some(Control::Ended { slot, stream }) => {
                    if self.note(slot, stream, |told| told.ended.store(true, Relaxed)) {
                        told(slot);
                    }
                }
                Some(Control::Asked { slot, stream }) => {
                    if self.note(slot, stream, |told| told.asked.store(true, Relaxed)) {
                        told(slot);
                    }
                }
                // What functions log is for clients that have asked for it.
                Some(Control::Log { .. } | Control::Slow { .. }) => {}
                Some(_) => return Err("the worker sent a message that only clients send".into()),
            }
        }
    }

    /// Notes what the worker says of a stream, unless it is about one that had the slot before, or that
    /// nobody has any more. Whether it is not.
    fn note(&self, slot: u32, number: u64, what: impl FnOnce(&Told)) -> bool {
        let open = self.slots.get(slot);
        let open = open.filter(|open| open.number == number && open.left.is_none());
        if let Some(open) = open {
            what(&open.told);
        }
        open.is_some()
    }

    /// The end of a stream was seen, and its rings were dropped.
    pub(super) fn close(&mut self, slot: u32) {
        let Some(closed) = self.slots.remove(slot) else {
            return;
        };
        drop(closed.left);
        if closed.limited {
            self.end.end_limit();
        }
        self.end.leave();
        self.load.set_busy(!self.slots.is_empty());
        // A worker that does not listen is one that is about to be given up.
        let _ = self.tell(&Control::Close { slot });
        self.slots.give_back(slot);
    }

    /// The owner of a stream has dropped it.
    pub(super) fn abandon(&mut self, slot: u32, rings: RingPair) {
        let Some(open) = self.slots.get_mut(slot) else {
            return;
        };
        open.left = Some(rings);
        let _ = self.tell(&Control::Cancel { slot });
        self.drain(slot);
    }

    /// Drops the results of a stream whose owner is gone, up to the end.
    fn drain(&mut self, slot: u32) {
        let Some(Slot {
            left: Some(rings), ..
        }) = self.slots.get_mut(slot)
        else {
            return;
        };
        let over = loop {
            match rings.consumer.peek() {
                Ok(Some(frame)) => {
                    let kind = frame.kind;
                    rings.consumer.release();
                    if kind == END || kind == ERROR {
                        break true;
                    }
                }
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        if rings.consumer.publish() && self.end.notify(slot) {
            woke_worker();
        }
        if over {
            self.close(slot);
        }
    }

    /// The worker has died: every stream learns how, once it has taken what is there.
    pub(super) fn fail(&mut self, death: &Death) {
        let running = match death.ran {
            Ran::Here => self.end.running(),
            Ran::Nothing | Ran::Elsewhere => None,
        };
        for (slot, open) in self.slots.iter() {
            let own = running.filter(|r| (r.slot, r.stream) == (slot, open.number));
            let culprit = match death.ran {
                Ran::Nothing => None,
                Ran::Here | Ran::Elsewhere => Some(own.is_some()),
            };
            let _ = open.told.failure.set(Failure::Died(WorkerDied {
                stream: open.name.clone(),
                pid: self.worker.pid,
                exit: death.exit,
                in_flight: 0, // the stream itself knows
                culprit,
                event: own.map(|r| r.event).filter(|&event| event > 0),
                why: death.why,
                stack: death.stack.clone(),
            }));
        }
    }

    /// The worker makes no sense: its streams are over.
    pub(super) fn give_up(&mut self, why: &str) {
        for (_, open) in self.slots.iter() {
            let _ = open.told.failure.set(Failure::Corrupted(why.to_owned()));
        }
    }
}

fn cannot_open(error: LinkError) -> StreamError {
    StreamError::Pool(format!("cannot open a stream: {}", explain(&error)))
}

/// A limit as it travels: 0 for none, at least a millisecond otherwise.
fn milliseconds(limit: Option<Duration>) -> u64 {
    limit.map_or(0, |limit| {
        u64::try_from(limit.as_micros().div_ceil(1000)).map_or(u64::MAX, |ms| ms.max(1))
    })
}

/// What the supervisor is to look at a worker for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) stall: Option<Duration>,
    pub(super) memory: Option<u64>,
}

impl Watched {
    /// What a stream asks for.
    pub(super) fn of(options: &StreamOptions) -> Self {
        Self {
            stall: strictest(options.stall_timeout, options.event_timeout),
            memory: options.max_worker_memory,
        }
    }

    /// The stricter of each.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            stall: strictest(self.stall, other.stall),
            memory: strictest(self.memory, other.memory),
        }
    }
}

fn strictest<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}
