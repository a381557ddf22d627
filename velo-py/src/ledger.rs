//! What all streams of one function have done: those that are open, and those that are gone.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use hdrhistogram::Histogram;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::cell::GilCell;
use crate::meter::{self, Figures};
use crate::state::StreamCore;
use crate::stream::Opened;

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

    /// The figures of `FunctionMetrics`, in its order.
    fn figures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let (opened, mut sums, open) = self.0.0.with(py, |pages| {
            let open: Vec<_> = pages.open.values().filter_map(Weak::upgrade).collect();
            (pages.opened, pages.gone.clone(), open)
        })?;
        for stream in open {
            sums.add(py, &stream)?;
        }
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
