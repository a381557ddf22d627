//! The client's end of a link, and the streams that are open on it.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use velo_shm::{Consumer, Limits, LinkEnd, LinkError, Producer, ReserveError};

use super::error::{StreamError, WorkerDied};
use super::options::StreamOptions;
use super::quota::Counted;
use crate::os::exit::Exit;
use crate::os::limits::explain;
use crate::wire::control::{self, Control, END, ERROR};
use crate::wire::protocol::{Killed, LinkId, Ran, WorkerInfo};

/// How many freed slots are looked at before a fresh one is taken.
const LOOKS: usize = 4;

/// What a stream is told by others.
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
pub(super) struct Rings {
    pub(super) producer: Producer,
    pub(super) consumer: Consumer,
}

/// A stream that was opened.
#[derive(Debug)]
pub(super) struct Place {
    /// The hub's name for the link.
    pub(super) key: u64,
    pub(super) end: Arc<LinkEnd>,
    pub(super) slot: u32,
    pub(super) rings: Rings,
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
    /// Its rings, once nobody wants its results.
    left: Option<Rings>,
    _counted: Counted,
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) key: u64,
    /// None once the supervisor that knew it is gone.
    pub(super) id: Option<LinkId>,
    pub(super) worker: WorkerInfo,
    pub(super) end: Arc<LinkEnd>,
    /// Readable when the worker has ended.
    pub(super) process: Option<OwnedFd>,
    /// It takes no more streams.
    pub(super) leaving: bool,
    /// The strictest limits that the supervisor was told of.
    pub(super) limits: Watched,
    out: Producer,
    inward: Consumer,
    functions: HashMap<Vec<u8>, u64>,
    slots: HashMap<u32, Slot>,
    /// Slots of ended streams, in the order in which they ended.
    free: VecDeque<u32>,
    fresh: u32,
    opened: u64,
}

impl Link {
    pub(super) fn new(
        key: u64,
        id: LinkId,
        worker: WorkerInfo,
        end: Arc<LinkEnd>,
        process: Option<OwnedFd>,
    ) -> Result<Self, String> {
        let (out, inward) = control::open(&end).map_err(|error| error.to_string())?;
        Ok(Self {
            key,
            id: Some(id),
            worker,
            end,
            process,
            leaving: false,
            limits: Watched::default(),
            out,
            inward,
            functions: HashMap::new(),
            slots: HashMap::new(),
            free: VecDeque::new(),
            fresh: control::SLOT + 1,
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
        self.end.notify(control::SLOT);
        Ok(())
    }

    /// Opens a stream. None when the link takes no more.
    pub(super) fn open(
        &mut self,
        definition: &[u8],
        name: &str,
        options: &StreamOptions,
        counted: Counted,
    ) -> Result<Option<Place>, StreamError> {
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
    ) -> Result<Place, StreamError> {
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
        let slot = self.take_slot().map_err(cannot_open)?.ok_or_else(|| {
            let most = self.end.slots() - 1;
            StreamError::Pool(format!(
                "one worker cannot hold more than {most} streams of one connection; use more workers"
            ))
        })?;
        let (producer, consumer) = self.end.open_slot(slot, limits).map_err(|error| {
            self.free.push_back(slot);
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
            self.free.push_back(slot);
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
        Ok(Place {
            key: self.key,
            end: self.end.clone(),
            slot,
            rings: Rings { producer, consumer },
            told,
        })
    }

    /// A slot that nobody uses, made as good as new.
    fn take_slot(&mut self) -> Result<Option<u32>, LinkError> {
        let slots = self.end.slots();
        // The worker may not have let go of a slot yet. The one that was freed first is likeliest.
        let looks = if self.fresh < slots {
            LOOKS
        } else {
            self.free.len()
        };
        for _ in 0..looks.min(self.free.len()) {
            let Some(slot) = self.free.pop_front() else {
                break;
            };
            if self.end.reset_slot(slot)? {
                return Ok(Some(slot));
            }
            self.free.push_back(slot);
        }
        if self.fresh >= slots || !self.end.reset_slot(self.fresh)? {
            return Ok(None);
        }
        self.fresh += 1;
        Ok(Some(self.fresh - 1))
    }

    /// How many streams this side has opened and not seen the end of: not the shared count, which the
    /// worker could write over.
    pub(super) fn streams(&self) -> usize {
        self.slots.len()
    }

    /// Whether the link still says of itself what this side knows; why not, if it does not.
    fn check(&self) -> Result<(), String> {
        self.end.check().map_err(|found| found.to_string())?;
        let (counted, open) = (self.end.residents(), self.streams());
        if usize::try_from(counted) != Ok(open) {
            return Err(format!(
                "the link counts {counted} open streams instead of {open}"
            ));
        }
        Ok(())
    }

    /// Looks at what a worker that writes over flags and bits could hide. For now and then.
    pub(super) fn check_up(&self) -> Result<(), String> {
        if self.streams() > 0 {
            self.check()?;
            self.end.mend();
            if self.end.worker_input_waits() {
                self.end.ring();
            }
        }
        Ok(())
    }

    /// The slots of its streams.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> {
        self.slots.keys().copied()
    }

    /// Looks at what the worker has told, and names the streams that it is about. An error says why
    /// the link is of no use any more.
    pub(super) fn look(&mut self, mut told: impl FnMut(u32)) -> Result<(), String> {
        let mut ready = Vec::new();
        self.end.take_ready(|slot| ready.push(slot));
        for slot in ready {
            if slot == control::SLOT {
                self.read_control(&mut told)?;
            } else if self
                .slots
                .get(&slot)
                .is_some_and(|open| open.left.is_none())
            {
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
        let open = self.slots.get(&slot);
        let open = open.filter(|open| open.number == number && open.left.is_none());
        if let Some(open) = open {
            what(&open.told);
        }
        open.is_some()
    }

    /// The end of a stream was seen, and its rings were dropped.
    pub(super) fn close(&mut self, slot: u32) {
        let Some(closed) = self.slots.remove(&slot) else {
            return;
        };
        drop(closed.left);
        if closed.limited {
            self.end.end_limit();
        }
        self.end.leave();
        // A worker that does not listen is one that is about to be given up.
        let _ = self.tell(&Control::Close { slot });
        self.free.push_back(slot);
    }

    /// Nobody wants the results of a stream, nor its function.
    pub(super) fn abandon(&mut self, slot: u32, rings: Rings) {
        let Some(open) = self.slots.get_mut(&slot) else {
            return;
        };
        open.left = Some(rings);
        let _ = self.tell(&Control::Cancel { slot });
        self.drain(slot);
    }

    /// Drops the results of a stream that nobody wants, up to the end.
    fn drain(&mut self, slot: u32) {
        let Some(Slot {
            left: Some(rings), ..
        }) = self.slots.get_mut(&slot)
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
        if rings.consumer.publish() {
            self.end.notify(slot);
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
        for (slot, open) in &self.slots {
            let own = running.filter(|r| (r.slot, r.stream) == (*slot, open.number));
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
        for open in self.slots.values() {
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
