//! Partitions of a source of `velo.connect`, and the records of them that are not handled, or, where
//! states are saved, not in a snapshot yet.

use std::collections::{HashMap, VecDeque};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::positions::{Position, Positions};
use super::runs::{Saving, beyond};
use crate::codec::Record;

/// In place of a partition: the key has had no record.
pub const NO_PARTITION: u32 = u32::MAX;

/// A record that was taken from the source and is not handled.
pub struct Token {
    pub record: Py<PyAny>,
    pub partition: u32,
    /// Which one of its partition, counted from the first that was taken.
    number: u64,
}

/// Partitions, and what of them is handled.
pub struct Tracker {
    /// From a partition to its place in `partitions`.
    pub places: Py<PyDict>,
    pub partitions: Vec<Partition>,
    /// The partition of the last record: most come in runs.
    last: Option<(Py<PyAny>, u32)>,
    /// The key is the record's own, not one of its value.
    pub by_record_key: bool,
    /// The state of keys is saved.
    pub saving: Option<Saving>,
}

/// What of a partition is handled.
pub struct Partition {
    pub name: Py<PyAny>,
    /// The number of the first record in `window`, and of the first one that is not handled.
    first: u64,
    unhandled: u64,
    /// Of each record in the window, which run has handled it, and its position.
    window: VecDeque<By>,
    positions: Positions,
    /// The highest position below the window, if the caller has not been told of it.
    pub handled: Option<Position>,
}

/// Which run of the function of a key has handled a record, as which of its events. It takes 8 bytes,
/// because all records between two ticks are remembered: what they take drives the keys out of the cache.
#[derive(Clone, Copy, PartialEq)]
pub struct By {
    /// Which one of all runs of all keys; 0 in the constants alone.
    pub run: u32,
    pub number: u32,
}

/// No run has handled the record.
const UNHANDLED: By = By { run: 0, number: 0 };
/// Nothing will ever need the record again.
const ABSORBED: By = By { run: 0, number: 1 };

/// Keys that are late: by run, how many of its events their snapshot covers.
pub type Late = HashMap<u32, u32>;

/// Positions of one partition: the highest one below the window, and those that are absorbed in it.
pub type Absorbed = (Option<Py<PyAny>>, Vec<Py<PyAny>>);

impl By {
    fn is_absorbed(self, late: &Late) -> bool {
        match late.get(&self.run) {
            Some(&covered) => beyond(self.number, covered) == 0,
            None => self != UNHANDLED,
        }
    }
}

impl Partition {
    /// Records from the first that is not handled to the last one.
    pub fn distance(&self) -> usize {
        let known = self.unhandled - self.first;
        self.window.len() - known as usize
    }

    /// Nothing that was taken so far is of interest.
    pub fn leave(&mut self) {
        self.first += self.window.len() as u64;
        self.unhandled = self.first;
        self.window.clear();
        self.positions = Positions::default();
        self.handled = None;
    }

    fn note(&mut self, number: u64, by: Option<By>) {
        let Some(at) = number.checked_sub(self.first) else {
            return; // the partition was left meanwhile
        };
        if let Some(one) = self.window.get_mut(at as usize) {
            *one = by.unwrap_or(ABSORBED);
        }
        while let Some(&one) = self.window.get((self.unhandled - self.first) as usize)
            && one != UNHANDLED
        {
            self.unhandled += 1;
        }
    }

    /// A record that was handled, and is not absorbed, is to be handled again.
    fn undo(&mut self, number: u64) {
        let at = number.checked_sub(self.first);
        if let Some(one) = at.and_then(|at| self.window.get_mut(at as usize)) {
            *one = UNHANDLED;
            self.unhandled = self.unhandled.min(number);
        }
    }

    /// Moves the window to the first record that is not handled.
    fn pass_handled(&mut self) {
        while self.first < self.unhandled {
            self.window.pop_front();
            self.handled = self.positions.pop();
            self.first += 1;
        }
    }

    /// Moves the window to the first record that is not absorbed. With `all`, the positions that it
    /// passes are among those that are given.
    pub fn cut(&mut self, py: Python<'_>, late: &Late, all: bool) -> PyResult<Absorbed> {
        let (mut last, mut ahead) = (None, Vec::new());
        while let Some(one) = self.window.front()
            && one.is_absorbed(late)
        {
            self.window.pop_front();
            last = self.positions.pop();
            self.first += 1;
            if all && let Some(passed) = &last {
                ahead.push(passed.object(py)?);
            }
        }
        for (at, one) in self.window.iter_mut().enumerate() {
            if one.is_absorbed(late) {
                *one = ABSORBED;
                ahead.extend(self.positions.object(py, at)?);
            }
        }
        let last = last.map(|last| last.object(py)).transpose()?;
        Ok((last, ahead))
    }
}

/// The function of a key has raised, or the key of a record could not be found.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct KeyFailure {
    /// The key; None where it could not be found.
    pub key: Option<Py<PyAny>>,
    /// The exception.
    pub error: Py<PyAny>,
    /// The record that it is about, if it is about one.
    pub record: Option<Py<PyAny>>,
    /// What `Keys.release` takes. None: nothing is held.
    pub held: Option<u32>,
    /// The record holds an event. Otherwise its value is what came, which could not be decoded.
    pub decoded: bool,
}

impl Tracker {
    /// For the records of one source.
    pub fn new(py: Python<'_>, by_record_key: bool, saving: Option<Saving>) -> Self {
        Tracker {
            places: PyDict::new(py).unbind(),
            partitions: Vec::new(),
            last: None,
            by_record_key,
            saving,
        }
    }

    /// A record was taken from the source.
    pub fn take(&mut self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Option<Token>> {
        let Ok(record) = event.cast_exact::<Record>() else {
            return Ok(None);
        };
        let record = record.get();
        let place = match &self.last {
            Some((name, place)) if name.is(&record.partition) => *place,
            _ => {
                let place = self.place(py, &record.partition)?;
                self.last = Some((record.partition.clone_ref(py), place));
                place
            }
        };
        let partition = &mut self.partitions[place as usize];
        let number = partition.first + partition.window.len() as u64;
        partition.window.push_back(UNHANDLED);
        partition.positions.push(py, &record.position)?;
        Ok(Some(Token {
            record: event.clone().unbind(),
            partition: place,
            number,
        }))
    }

    fn place(&mut self, py: Python<'_>, name: &Py<PyAny>) -> PyResult<u32> {
        let places = self.places.bind(py);
        if let Some(place) = places.get_item(name)? {
            return place.extract();
        }
        let place = self.partitions.len() as u32;
        places.set_item(name, place)?;
        self.partitions.push(Partition {
            name: name.clone_ref(py),
            first: 0,
            unhandled: 0,
            window: VecDeque::new(),
            positions: Positions::default(),
            handled: None,
        });
        Ok(place)
    }

    /// A record is to be handled again.
    pub fn undo(&mut self, token: &Token) {
        self.partitions[token.partition as usize].undo(token.number);
    }

    /// A record is handled, by a run whose state is saved or by none.
    pub fn done(&mut self, token: &Token, by: Option<By>) {
        let partition = &mut self.partitions[token.partition as usize];
        partition.note(token.number, by);
        if self.saving.is_none() {
            partition.pass_handled();
        }
    }
}

/// Records of one key, in order. Takes one word while there is none.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "one word a key instead of four")]
pub struct Tokens(Option<Box<VecDeque<Token>>>);

impl Tokens {
    /// Adds one at the end.
    pub fn push(&mut self, token: Token) {
        self.0.get_or_insert_default().push_back(token);
    }

    /// Takes the first one.
    pub fn pop(&mut self) -> Option<Token> {
        let queue = self.0.as_mut()?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.0 = None;
        }
        first
    }

    /// Takes the one of this record.
    pub fn remove(&mut self, record: &Py<PyAny>) -> Option<Token> {
        let queue = self.0.as_mut()?;
        let at = queue.iter().position(|token| token.record.is(record))?;
        let token = queue.remove(at);
        if queue.is_empty() {
            self.0 = None;
        }
        token
    }

    /// Adds those of another one at the end.
    pub fn append(&mut self, other: Tokens) {
        if let Some(mut other) = other.0 {
            self.0.get_or_insert_default().append(&mut other);
        }
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.iter().flat_map(|queue| queue.iter())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.len())
    }
}
