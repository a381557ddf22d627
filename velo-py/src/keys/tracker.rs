//! Partitions of a source of `velo.connect`, and the records of them that are not handled.

use std::collections::VecDeque;

use pyo3::prelude::*;
use pyo3::types::PyDict;

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
}

/// What of a partition is handled.
pub struct Partition {
    pub name: Py<PyAny>,
    /// The number of the first record in `window`.
    pub first: u64,
    /// Positions, and whether they are handled.
    pub window: VecDeque<(Py<PyAny>, bool)>,
    /// The highest position below the window, if the caller has not been told of it.
    pub handled: Option<Py<PyAny>>,
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
    pub fn new(py: Python<'_>, by_record_key: bool) -> Self {
        Tracker {
            places: PyDict::new(py).unbind(),
            partitions: Vec::new(),
            last: None,
            by_record_key,
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
        let position = record.position.clone_ref(py);
        partition.window.push_back((position, false));
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
            window: VecDeque::new(),
            handled: None,
        });
        Ok(place)
    }

    /// A record is handled.
    pub fn done(&mut self, token: &Token) {
        let partition = &mut self.partitions[token.partition as usize];
        let Some(at) = token.number.checked_sub(partition.first) else {
            return; // the partition was forgotten meanwhile
        };
        if let Some((_, done)) = partition.window.get_mut(at as usize) {
            *done = true;
        }
        while let Some((_, true)) = partition.window.front() {
            partition.handled = partition.window.pop_front().map(|(position, _)| position);
            partition.first += 1;
        }
    }
}

/// The records of one key that are not handled, in order. Takes one word while there is none.
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

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.iter().flat_map(|queue| queue.iter())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.len())
    }
}
