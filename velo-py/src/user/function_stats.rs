//! Statistics of one function: totals over its open and its ended streams.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use hdrhistogram::Histogram;
use pyo3::prelude::*;

use crate::cell::GilCell;
use crate::user::key_counts::SharedCounts;
use crate::user::meter::{self, Figures};

/// The statistics of one function, in one process.
#[pyclass(frozen, module = "velo._core")]
#[derive(Default)]
pub struct FunctionStats(Arc<Streams>);

/// The streams that a [`FunctionStats`] counts; each of them refers to it.
#[derive(Default)]
pub struct Streams(GilCell<Totals>);

#[derive(Default)]
struct Totals {
    opened: u64,
    open: HashMap<u64, Weak<dyn Counted>>,
    /// The counts of the open users of many keys.
    keys: Vec<Arc<SharedCounts>>,
    gone: Sums,
}

/// A stream that a function's statistics count.
pub trait Counted: Send + Sync {
    /// Adds the counts of the stream so far.
    fn add_to(&self, py: Python<'_>, sums: &mut Sums) -> PyResult<()>;
}

/// The counts of one stream so far.
pub struct StreamCounts<'a> {
    pub accepted: u64,
    pub handled: u64,
    /// Events that were dropped before they were queued, and after.
    pub dropped: (u64, u64),
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub results: u64,
    /// The last result was not taken yet.
    pub open: bool,
    pub latencies: Option<&'a Histogram<u32>>,
}

/// Counts of several streams.
#[derive(Clone, Default)]
pub struct Sums {
    events: u64,
    results: u64,
    bytes_in: u64,
    bytes_out: u64,
    queued: u64,
    dropped: u64,
    /// Streams whose last result was not taken yet.
    open: u64,
    /// The same for keys of `keyed` or `keys`.
    keys: KeySums,
    latencies: Option<Box<Histogram<u32>>>,
}

/// Counts of keys, over all users of many keys.
#[derive(Clone, Copy, Default)]
struct KeySums {
    live: u64,
    opened: u64,
    ended: u64,
    evicted: u64,
}

impl KeySums {
    fn merge(&mut self, other: &KeySums) {
        self.live += other.live;
        self.opened += other.opened;
        self.ended += other.ended;
        self.evicted += other.evicted;
    }
}

impl Sums {
    /// Adds the counts of one stream.
    pub fn add(&mut self, stream: &StreamCounts<'_>) {
        let (here, beyond) = stream.dropped;
        self.events += stream.accepted + here;
        self.dropped += here + beyond;
        self.queued += stream.accepted.saturating_sub(stream.handled);
        self.bytes_in += stream.bytes_in;
        self.bytes_out += stream.bytes_out;
        self.open += u64::from(stream.open);
        self.results += stream.results;
        if let Some(seen) = stream.latencies {
            let all = self.latencies.get_or_insert_with(meter::no_latencies);
            let _ = all.add(seen); // both grow as needed
        }
    }

    /// Adds the counts of a user of many keys.
    fn add_keys(&mut self, py: Python<'_>, keys: &SharedCounts) -> PyResult<()> {
        keys.0.wait_with(py, |shared| {
            let counts = shared.counts;
            self.events += counts.events + counts.dropped;
            self.dropped += counts.dropped;
            self.results += counts.results;
            self.queued += counts.pending;
            self.open += counts.live;
            self.keys.merge(&KeySums {
                live: counts.live,
                opened: counts.opened,
                ended: counts.ended,
                evicted: counts.evicted,
            });
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
        self.keys.merge(&other.keys);
        if let Some(seen) = &other.latencies {
            let all = self.latencies.get_or_insert_with(meter::no_latencies);
            let _ = all.add(seen.as_ref()); // both grow as needed
        }
    }
}

impl Streams {
    /// Counts a stream that was opened just now. Returns its number here; None if another object counts
    /// it.
    pub fn enter(
        &self,
        py: Python<'_>,
        stream: impl FnOnce(u64) -> Option<Weak<dyn Counted>>,
    ) -> PyResult<()> {
        Ok(self.0.with(py, |totals| {
            totals.opened += 1;
            let number = totals.opened;
            if let Some(stream) = stream(number) {
                totals.open.insert(number, stream);
            }
        })?)
    }

    /// Removes the stream of this number, and keeps its counts.
    pub fn retire(&self, py: Python<'_>, number: u64, stream: &dyn Counted) {
        let _ = self.0.with(py, |totals| {
            totals.open.remove(&number);
            let _ = stream.add_to(py, &mut totals.gone);
            (totals.gone.open, totals.gone.queued) = (0, 0);
        });
    }
}

impl FunctionStats {
    /// The streams that it counts.
    pub fn streams(&self) -> &Arc<Streams> {
        &self.0
    }
}

/// The fields of `FunctionMetrics`.
#[derive(IntoPyObject)]
struct FunctionFigures {
    opened: u64,
    open: u64,
    events: u64,
    results: u64,
    bytes_in: u64,
    bytes_out: u64,
    queued: u64,
    dropped: u64,
    latency_p50: Option<f64>,
    latency_p95: Option<f64>,
    latency_p99: Option<f64>,
    keys: u64,
    keys_opened: u64,
    keys_ended: u64,
    keys_evicted: u64,
}

/// The distribution of the latencies of one function, in seconds.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct Latencies {
    /// For each bound, the number of events that took no longer.
    below: Vec<u64>,
    /// The number of events whose latency was measured.
    count: u64,
    /// The sum of their latencies.
    sum: f64,
}

#[pymethods]
impl FunctionStats {
    #[new]
    fn new() -> Self {
        FunctionStats::default()
    }

    /// Adds the current values of other statistics. With `past`, their streams have ended: none is open,
    /// and no event is queued.
    #[pyo3(signature = (other, *, past = false))]
    fn absorb(&self, other: &FunctionStats, py: Python<'_>, past: bool) -> PyResult<()> {
        let (opened, mut sums) = other.sums(py)?;
        if past {
            (sums.open, sums.queued, sums.keys.live) = (0, 0, 0);
        }
        self.0.0.with(py, |totals| {
            totals.opened += opened;
            totals.gone.merge(&sums);
        })?;
        Ok(())
    }

    /// The distribution of the latencies that were measured, over these bounds in seconds.
    fn latencies(&self, py: Python<'_>, bounds: Vec<f64>) -> PyResult<Latencies> {
        let (_, sums) = self.sums(py)?;
        let Some(seen) = sums.latencies else {
            return Ok(Latencies {
                below: vec![0; bounds.len()],
                count: 0,
                sum: 0.0,
            });
        };
        let below = bounds
            .iter()
            .map(|bound| seen.count_between(0, (bound * 1e9) as u64))
            .collect();
        let nanoseconds: f64 = seen
            .iter_recorded()
            .map(|step| step.value_iterated_to() as f64 * step.count_at_value() as f64)
            .sum();
        Ok(Latencies {
            below,
            count: seen.len(),
            sum: nanoseconds / 1e9,
        })
    }

    /// The fields of `FunctionMetrics`, as a dict.
    fn figures(&self, py: Python<'_>) -> PyResult<FunctionFigures> {
        let (opened, sums) = self.sums(py)?;
        let Figures { p50, p95, p99 } = Figures::of(sums.latencies.as_deref());
        Ok(FunctionFigures {
            opened,
            open: sums.open,
            events: sums.events,
            results: sums.results,
            bytes_in: sums.bytes_in,
            bytes_out: sums.bytes_out,
            queued: sums.queued,
            dropped: sums.dropped,
            latency_p50: p50,
            latency_p95: p95,
            latency_p99: p99,
            keys: sums.keys.live,
            keys_opened: sums.keys.opened,
            keys_ended: sums.keys.ended,
            keys_evicted: sums.keys.evicted,
        })
    }
}

impl FunctionStats {
    /// Adds a user of many keys, each of which counts as a stream.
    pub fn enter_keys(&self, py: Python<'_>, keys: &Arc<SharedCounts>) -> PyResult<()> {
        Ok(self.0.0.with(py, |totals| {
            // An entry without another reference has ended.
            let gone = |keys: &Arc<SharedCounts>| Arc::strong_count(keys) == 1;
            for keys in totals.keys.extract_if(.., |keys| gone(keys)) {
                let _ = totals.gone.add_keys(py, &keys);
                let opened = keys.0.with(py, |shared| shared.counts.opened);
                totals.opened += opened.unwrap_or(0);
            }
            (totals.gone.open, totals.gone.queued, totals.gone.keys.live) = (0, 0, 0);
            totals.keys.push(keys.clone());
        })?)
    }

    /// The number of streams that were opened, and their totals.
    fn sums(&self, py: Python<'_>) -> PyResult<(u64, Sums)> {
        let (mut opened, mut sums, open, keys) = self.0.0.with(py, |totals| {
            let open: Vec<_> = totals.open.values().filter_map(Weak::upgrade).collect();
            let keys = totals.keys.clone();
            (totals.opened, totals.gone.clone(), open, keys)
        })?;
        for keys in keys {
            sums.add_keys(py, &keys)?;
            opened += keys.0.wait_with(py, |shared| shared.counts.opened)?;
        }
        for stream in open {
            stream.add_to(py, &mut sums)?;
        }
        Ok((opened, sums))
    }
}
