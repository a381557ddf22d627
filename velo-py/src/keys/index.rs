//! The keys that the caller knows, found by Python's own hash and equality: `1`, `True` and `1.0` are
//! one key, as they are in a dict, and a NaN is equal to itself alone.

use pyo3::ffi;
use pyo3::prelude::*;

use super::journal::KeyJournal;
use super::saved_run::SavedRun;
use super::tracker::{NO_PARTITION, Tokens};
use super::waiting::Waiting;
use crate::lane_frames::Name;

/// No entry.
pub const NONE: u32 = u32::MAX;
/// In place of an entry: the lane still has the key, whose entry is gone.
const ABANDONED: u32 = NONE - 1;

/// What is between a key's first event and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// No key has the entry.
    #[default]
    Free,
    /// It has yet to be opened: it has no permit, or no lane.
    Unopened,
    /// It may be sent events.
    Open,
    /// Its input has ended, its last results are on their way.
    Ending,
    /// Its function has returned by itself.
    Finished,
    /// Its function has raised, and the caller decides what becomes of the record in hand.
    Held,
}

/// What is known of one key.
#[derive(Default)]
pub struct Entry {
    pub key: Option<Py<PyAny>>,
    hash: u64,
    /// Events that have yet to be sent.
    pub waiting: Waiting,
    /// Under which number the lane knows it.
    pub id: u32,
    pub generation: u32,
    /// Events that were sent and that the table has not told to be handled.
    pub in_flight: u32,
    /// Events that were sent since it was opened.
    pub sent: u32,
    /// How a key is kept that outlives its worker.
    pub journal: Option<Box<KeyJournal>>,
    older: u32,
    newer: u32,
    /// When it was used last, in milliseconds of the owner's clock.
    pub used: u32,
    pub lane: u16,
    pub stage: Stage,
    /// Its input is to end as soon as what waits was sent.
    pub ends: bool,
    /// Its function was cancelled: what is still told of it is of no interest.
    pub cancelled: bool,
    /// Its function has handled an event.
    pub began: bool,
    /// The partition of its last record, and its records that are not handled; see `tracking.rs`.
    pub partition: u32,
    pub tokens: Tokens,
    /// Its present run, where states are saved.
    pub run: Option<Box<SavedRun>>,
    /// That is because another key needs its permit.
    pub evicted: bool,
}

impl Entry {
    /// The name under which its lane knows the key.
    #[inline]
    pub fn name(&self) -> Name {
        Name {
            id: self.id,
            generation: self.generation,
        }
    }

    /// Events that have yet to be sent, the first time or again.
    pub fn unsent(&self) -> u64 {
        let again = self.journal.as_ref().map_or(0, |journal| journal.unsent());
        self.waiting.len() as u64 + again
    }

    /// Whether its input has ended, and events have come since.
    pub fn has_next_run(&self) -> bool {
        self.stage == Stage::Ending && !self.waiting.is_empty()
    }

    /// Whether the input has ended of the function that it has, or is about to.
    pub fn is_ending(&self) -> bool {
        let told = self.journal.as_ref().is_some_and(|journal| journal.ended);
        self.ends || told || self.stage == Stage::Ending
    }
}

/// Entries in the order of their last use.
#[derive(Clone, Copy, Debug)]
struct Order {
    oldest: u32,
    newest: u32,
}

const EMPTY: Order = Order {
    oldest: NONE,
    newest: NONE,
};

/// A hash table from keys to entries.
pub struct Index {
    /// `(tag, entry)`; the entry is `NONE` where there is none. A power of two.
    cells: Vec<(u32, u32)>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    used: usize,
    /// Of those that are open, if somebody wants to know; and of those that are finished.
    live: Order,
    finished: Order,
    finished_count: usize,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            cells: vec![(0, NONE); 16],
            entries: Vec::new(),
            free: Vec::new(),
            used: 0,
            live: EMPTY,
            finished: EMPTY,
            finished_count: 0,
        }
    }
}

/// Python's hash of a key.
#[inline]
pub fn hash_of(key: &Bound<'_, PyAny>) -> PyResult<u64> {
    Ok(mix(key.hash()?))
}

/// Hashes of integers are the integers: neighbours must not lie in one heap.
#[inline]
fn mix(hash: isize) -> u64 {
    let hash = (hash as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 32)
}

/// Python's equality, as a dict has it.
#[inline]
fn same(known: &Py<PyAny>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
    if known.is(key) {
        return Ok(true);
    }
    // SAFETY: both are live objects: the caller holds the key, and the index, which no other code can change
    // while this is entered, holds the other one.
    match unsafe { ffi::PyObject_RichCompareBool(known.as_ptr(), key.as_ptr(), ffi::Py_EQ) } {
        -1 => Err(PyErr::fetch(key.py())),
        equal => Ok(equal == 1),
    }
}

impl Index {
    /// How many keys there are, those that are finished included.
    pub fn len(&self) -> usize {
        self.used
    }

    /// How many of them are finished.
    pub fn finished(&self) -> usize {
        self.finished_count
    }

    /// The entry of a key.
    #[inline]
    pub fn find(&self, key: &Bound<'_, PyAny>, hash: u64) -> PyResult<Option<u32>> {
        let mask = self.cells.len() - 1;
        let mut at = (hash as usize) & mask;
        loop {
            let (tag, entry) = self.cells[at];
            if entry == NONE {
                return Ok(None);
            }
            if tag == hash as u32
                && let Some(known) = &self.entries[entry as usize].key
                && self.entries[entry as usize].hash == hash
                && same(known, key)?
            {
                return Ok(Some(entry));
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a key that is not there.
    pub fn insert(&mut self, key: Py<PyAny>, hash: u64) -> u32 {
        if (self.used + 1) * 4 > self.cells.len() * 3 {
            self.resize(self.cells.len() * 2);
        }
        let entry = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            (self.entries.len() - 1) as u32
        });
        self.entries[entry as usize] = Entry {
            key: Some(key),
            hash,
            older: NONE,
            newer: NONE,
            stage: Stage::Unopened,
            partition: NO_PARTITION,
            ..Entry::default()
        };
        self.place(hash, entry);
        self.used += 1;
        entry
    }

    fn place(&mut self, hash: u64, entry: u32) {
        let mask = self.cells.len() - 1;
        let mut at = (hash as usize) & mask;
        while self.cells[at].1 != NONE {
            at = (at + 1) & mask;
        }
        self.cells[at] = (hash as u32, entry);
    }

    fn resize(&mut self, cells: usize) {
        let before = std::mem::replace(&mut self.cells, vec![(0, NONE); cells]);
        for (_, entry) in before {
            if entry != NONE {
                self.place(self.entries[entry as usize].hash, entry);
            }
        }
    }

    /// Forgets a key. What it held is the caller's to drop, once the index is left: that may run
    /// Python code.
    pub fn remove(&mut self, entry: u32) -> Entry {
        self.unlink(entry);
        let removed = std::mem::take(&mut self.entries[entry as usize]);
        let mask = self.cells.len() - 1;
        let mut at = (removed.hash as usize) & mask;
        while self.cells[at].1 != entry {
            at = (at + 1) & mask;
        }
        // Those behind it move up, so that no search ends too early.
        let mut next = (at + 1) & mask;
        while self.cells[next].1 != NONE {
            let home = (self.entries[self.cells[next].1 as usize].hash as usize) & mask;
            let from_home = next.wrapping_sub(home) & mask;
            if from_home >= (next.wrapping_sub(at) & mask) {
                self.cells[at] = self.cells[next];
                at = next;
            }
            next = (next + 1) & mask;
        }
        self.cells[at] = (0, NONE);
        self.used -= 1;
        self.free.push(entry);
        if self.used * 8 < self.cells.len() && self.cells.len() > 1024 {
            self.shrink();
        }
        removed
    }

    /// Gives memory back that a crowd has left.
    fn shrink(&mut self) {
        self.resize(self.cells.len() / 2);
        if self.used == 0 {
            self.entries = Vec::new();
            self.free = Vec::new();
        }
    }

    /// What is known of a key.
    #[inline]
    pub fn entry(&mut self, entry: u32) -> &mut Entry {
        &mut self.entries[entry as usize]
    }

    /// The same of a number that may belong to no key.
    pub fn get(&mut self, entry: u32) -> Option<&mut Entry> {
        self.entries.get_mut(entry as usize)
    }

    /// The one that was used least recently.
    pub fn oldest(&self) -> Option<u32> {
        (self.live.oldest != NONE).then_some(self.live.oldest)
    }

    /// The one that was used right after it.
    pub fn newer(&self, entry: u32) -> Option<u32> {
        let newer = self.entries[entry as usize].newer;
        (newer != NONE).then_some(newer)
    }

    /// The one that has been finished for longest.
    pub fn oldest_finished(&self) -> Option<u32> {
        (self.finished.oldest != NONE).then_some(self.finished.oldest)
    }

    /// Notes that a live key is used.
    #[inline]
    pub fn touch(&mut self, entry: u32, now: u32) {
        self.entries[entry as usize].used = now;
        if self.live.newest != entry {
            self.unlink(entry);
            self.link(entry, false);
        }
    }

    /// Notes that the function of a key has returned.
    pub fn finish(&mut self, entry: u32, now: u32) {
        self.unlink(entry);
        let known = &mut self.entries[entry as usize];
        known.stage = Stage::Finished;
        known.used = now;
        self.link(entry, true);
        self.finished_count += 1;
    }

    fn link(&mut self, entry: u32, finished: bool) {
        let order = if finished {
            &mut self.finished
        } else {
            &mut self.live
        };
        let before = std::mem::replace(&mut order.newest, entry);
        if before == NONE {
            order.oldest = entry;
        } else {
            self.entries[before as usize].newer = entry;
        }
        let known = &mut self.entries[entry as usize];
        (known.older, known.newer) = (before, NONE);
    }

    fn unlink(&mut self, entry: u32) {
        let Entry {
            older,
            newer,
            stage,
            ..
        } = self.entries[entry as usize];
        let finished = stage == Stage::Finished;
        let order = if finished {
            &mut self.finished
        } else {
            &mut self.live
        };
        if older == NONE && newer == NONE && order.oldest != entry {
            return; // in no order
        }
        if older == NONE {
            order.oldest = newer;
        }
        if newer == NONE {
            order.newest = older;
        }
        if older != NONE {
            self.entries[older as usize].newer = newer;
        }
        if newer != NONE {
            self.entries[newer as usize].older = older;
        }
        let known = &mut self.entries[entry as usize];
        (known.older, known.newer) = (NONE, NONE);
        self.finished_count -= usize::from(finished);
    }

    /// The entries of the keys that a lane has.
    pub fn on_lane(&self, lane: u16) -> impl Iterator<Item = (u32, &Entry)> {
        self.all().filter(move |(_, entry)| {
            entry.lane == lane && matches!(entry.stage, Stage::Open | Stage::Ending)
        })
    }

    /// All entries that are somebody's.
    pub fn all(&self) -> impl Iterator<Item = (u32, &Entry)> {
        let numbered = self.entries.iter().enumerate();
        numbered
            .filter(|(_, entry)| entry.stage != Stage::Free)
            .map(|(number, entry)| (number as u32, entry))
    }
}

/// The numbers by which one lane knows its keys.
#[derive(Default)]
pub struct Ids {
    /// The entry of each, and its generation.
    keys: Vec<(u32, u32)>,
    free: Vec<u32>,
}

impl Ids {
    /// A number for this entry, and its generation.
    pub fn take(&mut self, entry: u32) -> (u32, u32) {
        let id = self.free.pop().unwrap_or_else(|| {
            self.keys.push((NONE, 0));
            (self.keys.len() - 1) as u32
        });
        let (known, generation) = &mut self.keys[id as usize];
        *known = entry;
        *generation = generation.wrapping_add(1);
        (id, *generation)
    }

    /// Whose number it is.
    #[inline]
    pub fn entry(&self, id: u32, generation: u32) -> Option<u32> {
        match self.keys.get(id as usize) {
            Some(&(entry, current)) if current == generation && entry < ABANDONED => Some(entry),
            _ => None,
        }
    }

    /// The key of this number is not wanted any more, but the worker has yet to say that it has ended.
    pub fn abandon(&mut self, id: u32) {
        self.keys[id as usize].0 = ABANDONED;
    }

    /// Whether the key of this number was abandoned.
    pub fn is_abandoned(&self, id: u32, generation: u32) -> bool {
        self.keys.get(id as usize) == Some(&(ABANDONED, generation))
    }

    /// The number belongs to no key any more.
    pub fn give_back(&mut self, id: u32) {
        self.keys[id as usize].0 = NONE;
        self.free.push(id);
    }

    /// How many are somebody's.
    pub fn live(&self) -> usize {
        self.keys.len() - self.free.len()
    }
}

impl Index {
    /// The entries of live keys from this number on.
    pub fn from(&self, first: u32) -> impl Iterator<Item = u32> {
        let numbers = first..self.entries.len() as u32;
        numbers.filter(|&number| {
            let stage = self.entries[number as usize].stage;
            !matches!(stage, Stage::Free | Stage::Finished)
        })
    }
}
