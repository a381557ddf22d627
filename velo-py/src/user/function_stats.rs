//! What all streams of one function have done: those that are open, and those that are gone.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use hdrhistogram::Histogram;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::cell::GilCell;
use crate::keys::counts::SharedCounts;
use crate::user::meter::{self, Figures};
use crate::user::state::StreamCore;
use crate::user::stream::Opened;

/// The account of one function, in one process.
#[pyclass(frozen, module = "velo._core")]
#[derive(Default)]
pub struct Ledger(Arc<Account>);

/// What a [`Ledger`] and the streams in it share.
#[derive(Default)]
pub struct Account(GilCell<Pages>);

#[derive(Default)]
struct Pages {
    opened: u64,
    open: HashMap<u64, Weak<StreamCore>>,
    /// What those have done that have many keys, until they are gone.
    keys: Vec<Arc<SharedCounts>>,
    gone: Sums,
}

/// Counts of several streams.
#[derive(Clone, Default)]
struct Sums {
    events: u64,
    results: u64,
    bytes_in: u64,
    bytes_out: u64,
    queued: u64,
    dropped: u64,
    /// Streams whose last result was not taken yet.
    open: u64,
    latencies: Option<Box<Histogram<u32>>>,
}

impl Sums {
    fn add(&mut self, py: Python<'_>, stream: &StreamCore) -> PyResult<()> {
        let (accepted, handled) = stream.channel.progress(py)?;
        let (bytes_in, bytes_out) = stream.channel.bytes(py)?;
        let (here, beyond) = stream.channel.dropped(py)?;
        self.events += accepted + here;
        self.dropped += here + beyond;
        self.queued += accepted.saturating_sub(handled);
        self.bytes_in += bytes_in;
        self.bytes_out += bytes_out;
        stream.state.wait_with(py, |state| {
            state.meter.observe(handled);
            self.open += u64::from(!state.is_over());
            self.results += state.meter.results();
            if let Some(seen) = state.meter.latencies() {
                let all = self.latencies.get_or_insert_with(meter::no_latencies);
                let _ = all.add(seen); // both grow as needed
            }
        })?;
        Ok(())
    }

    /// Adds what many keys have done.
    fn add_keys(&mut self, py: Python<'_>, keys: &SharedCounts) -> PyResult<()> {
        keys.0.wait_with(py, |shared| {
            let counts = shared.counts;
            self.events += counts.events + counts.dropped;
            self.dropped += counts.dropped;
            self.results += counts.results;
            self.queued += counts.pending;
            self.open += counts.live;
            if let Some(seen) = shared.meter.latencies() {
                let all = self.latencies.get_or_insert_with(meter::no_latencies);
                let _ = all.add(seen); // both grow as needed
            }
        })?;
        Ok(())
    }

    fn merge(&mut self, other: &Sums) {
        self.events += other.events;
        self.results += other.results;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.queued += other.queued;
        self.dropped += other.dropped;
        self.open += other.open;
        if let Some(seen) = &other.latencies {
            let all = self.latencies.get_or_insert_with(meter::no_latencies);
            let _ = all.add(seen.as_ref()); // both grow as needed
        }
    }
}

impl Account {
    /// The stream is gone: its counts stay.
    pub fn settle(&self, py: Python<'_>, number: u64, stream: &StreamCore) {
        let _ = self.0.with(py, |pages| {
            pages.open.remove(&number);
            let _ = pages.gone.add(py, stream);
            (pages.gone.open, pages.gone.queued) = (0, 0);
        });
    }
}

#[pymethods]
impl Ledger {
    #[new]
    fn new() -> Self {
        Ledger::default()
    }

    /// Enters a stream that was opened just now.
    fn enter(&self, opened: &Opened, py: Python<'_>) -> PyResult<()> {
        let core = opened.core();
        self.0.0.with(py, |pages| {
            pages.opened += 1;
            let number = pages.opened;
            if core.ledger.set((self.0.clone(), number)).is_ok() {
                pages.open.insert(number, Arc::downgrade(core));
            }
        })?;
        Ok(())
    }

    /// Adds what is in another account, as it stands. Of one that is `past`, whose streams are over,
    /// nothing is open or queued any more.
    #[pyo3(signature = (other, *, past = false))]
    fn absorb(&self, other: &Ledger, py: Python<'_>, past: bool) -> PyResult<()> {
        let (opened, mut sums) = other.sums(py)?;
        if past {
            (sums.open, sums.queued) = (0, 0);
        }
        self.0.0.with(py, |pages| {
            pages.opened += opened;
            pages.gone.merge(&sums);
        })?;
        Ok(())
    }

    /// Of the events that were timed: how many took no longer than each of these bounds, how many
    /// there were, and how long they took together. In seconds.
    fn latencies(&self, py: Python<'_>, bounds: Vec<f64>) -> PyResult<(Vec<u64>, u64, f64)> {
        let (_, sums) = self.sums(py)?;
        let Some(seen) = sums.latencies else {
            return Ok((vec![0; bounds.len()], 0, 0.0));
        };
        let below = bounds
            .iter()
            .map(|bound| seen.count_between(0, (bound * 1e9) as u64))
            .collect();
        let nanoseconds: f64 = seen
            .iter_recorded()
            .map(|step| step.value_iterated_to() as f64 * step.count_at_value() as f64)
            .sum();
        Ok((below, seen.len(), nanoseconds / 1e9))
    }

    /// The figures of `FunctionMetrics`, in its order.
    fn figures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let (opened, sums) = self.sums(py)?;
        let Figures { p50, p95, p99 } = Figures::of(sums.latencies.as_deref());
        (
            opened,
            sums.open,
            sums.events,
            sums.results,
            sums.bytes_in,
            sums.bytes_out,
            sums.queued,
            sums.dropped,
            p50,
            p95,
            p99,
        )
            .into_pyobject(py)
    }
}

impl Ledger {
    /// Enters what has many keys, each of which counts as a stream.
    pub fn enter_keys(&self, py: Python<'_>, keys: &Arc<SharedCounts>) -> PyResult<()> {
        Ok(self.0.0.with(py, |pages| {
            // Those that only this knows of any more are gone.
            let gone = |keys: &Arc<SharedCounts>| Arc::strong_count(keys) == 1;
            for keys in pages.keys.extract_if(.., |keys| gone(keys)) {
                let _ = pages.gone.add_keys(py, &keys);
                let opened = keys.0.with(py, |shared| shared.counts.opened);
                pages.opened += opened.unwrap_or(0);
            }
            (pages.gone.open, pages.gone.queued) = (0, 0);
            pages.keys.push(keys.clone());
        })?)
    }

    /// How many streams were opened, and what all of them have done.
    fn sums(&self, py: Python<'_>) -> PyResult<(u64, Sums)> {
        let (mut opened, mut sums, open, keys) = self.0.0.with(py, |pages| {
            let open: Vec<_> = pages.open.values().filter_map(Weak::upgrade).collect();
            let keys = pages.keys.clone();
            (pages.opened, pages.gone.clone(), open, keys)
        })?;
        for keys in keys {
            sums.add_keys(py, &keys)?;
            opened += keys.0.wait_with(py, |shared| shared.counts.opened)?;
        }
        for stream in open {
            sums.add(py, &stream)?;
        }
        Ok((opened, sums))
    }
}
