//! A stream as the user holds it.
//!
//! The operations on it (`send`, `recv`, `feed` and the like) are in [`crate::user::operation`] and
//! [`crate::user::results`]; what they share is in [`crate::user::state`].

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::codec::{ArraySpec, codec};
use crate::flow::Cancel;
use crate::user::function_stats::{Counted, FunctionStats};
use crate::user::meter::Figures;
use crate::user::operation::{Operation, What};
use crate::user::results::Results;
use crate::user::run::Run;
use crate::user::source::check_source;
use crate::user::state::StreamCore;

/// The base of `velo.Stream`: the operations whose speed matters.
#[pyclass(frozen, subclass, module = "velo._core")]
pub struct StreamBase {
    core: Arc<StreamCore>,
}

/// The two halves' shared state before it is a `Stream`: made by an opener, consumed by
/// `Stream.__new__`.
#[pyclass(frozen, module = "velo._core")]
pub struct Opened {
    core: Arc<StreamCore>,
}

impl Opened {
    /// The state that the stream's user shares with the code that opened it.
    pub fn core(&self) -> &Arc<StreamCore> {
        &self.core
    }

    /// Wraps a new stream's core.
    pub fn new(core: StreamCore) -> Self {
        Opened {
            core: Arc::new(core),
        }
    }
}

#[pymethods]
impl FunctionStats {
    /// Counts a stream that was opened just now.
    fn enter(&self, opened: &Opened, py: Python<'_>) -> PyResult<()> {
        self.streams().enter(py, |number| {
            let core = &opened.core;
            let entered = core.counted_in.set((self.streams().clone(), number));
            let counted: Arc<dyn Counted> = core.clone();
            entered.is_ok().then(|| Arc::downgrade(&counted))
        })
    }
}

/// Cancels a stream's function.
#[pyclass(frozen, module = "velo._core")]
struct Canceller(Arc<dyn Cancel>);

#[pymethods]
impl Canceller {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.0.cancel(py)
    }
}

#[pymethods]
impl StreamBase {
    #[new]
    #[pyo3(signature = (opened, *_args, **_kwargs))]
    fn new(
        opened: &Bound<'_, Opened>,
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> Self {
        StreamBase {
            core: opened.get().core.clone(),
        }
    }

    /// `StreamBase[In, Out]`, for type checkers.
    #[classmethod]
    fn __class_getitem__<'py>(
        class: &Bound<'py, pyo3::types::PyType>,
        _types: &Bound<'py, PyAny>,
    ) -> Bound<'py, pyo3::types::PyType> {
        class.clone()
    }

    /// Send one event; wait while `buffer` events are queued.
    ///
    /// With another `full` than `"wait"`, it does not wait. A cancelled `send` has sent nothing.
    ///
    /// Raises:
    ///     StreamClosed: When the stream takes no more events; the message says why.
    ///     StreamBusy: When another task is waiting to send, or from another thread or event loop.
    ///     BufferFull: When `buffer` events are queued, with `full="error"`.
    ///     EventTooLarge: When the event is larger than half of `max_bytes` (process mode).
    ///     TypeError: When the event cannot travel to another process; the message names the part.
    fn send(&self, event: Py<PyAny>) -> Operation {
        Operation::new(self.core.clone(), What::Send(event))
    }

    /// Lend a NumPy array to fill in place: `frame = await stream.loan(shape, dtype)`.
    ///
    /// In process mode, the array is in memory that the worker shares. Sending it, a contiguous
    /// part of it, or an event that contains it copies nothing: the function gets a read-only view.
    /// You may send it any number of times. In inline mode, and below 16 KiB, it is an ordinary
    /// array. Its initial contents are arbitrary, as with `numpy.empty`.
    ///
    /// After it was sent without a copy, the array is read-only. Earlier views of it stay writable;
    /// whether the function sees such writes is undefined.
    ///
    /// velo copies the array, which then stays writable, if you send it on another stream, or send
    /// a part of it that is not contiguous.
    ///
    /// The memory is lent again once neither side has the array or a view of it. Until then it
    /// stays valid, also after the stream has closed or its worker has died. All arrays on loan
    /// together may take `max_bytes`, besides the queue. Beyond that, `loan` waits, for any `full`,
    /// until the function or the caller releases an array; a caller that keeps all of them waits
    /// for itself. A function that keeps half of that memory gets copies from then on.
    ///
    /// A cancelled `loan` has taken nothing.
    ///
    /// Raises:
    ///     StreamClosed: When the stream takes no more events.
    ///     StreamBusy: When another task waits for a loan, or from another thread or event loop.
    ///     WorkerDied: When the stream's worker process has died.
    ///     EventTooLarge: When the array takes more than half of `max_bytes` (process mode).
    ///     TypeError: When items of `dtype` are not plain bytes, for example of `object`.
    ///     ValueError: When a dimension is negative, or the array is too large.
    fn loan(&self, shape: &Bound<'_, PyAny>, dtype: &Bound<'_, PyAny>) -> PyResult<Operation> {
        let spec = ArraySpec::new(codec(shape.py())?, shape, dtype)?;
        Ok(Operation::new(self.core.clone(), What::Loan(spec)))
    }

    /// Receive the next result.
    ///
    /// In process mode, large arrays and buffers arrive as read-only views of shared memory. In
    /// inline mode, a result is the function's own object. With `copy`, the result is a copy that
    /// you can write to: a copy from shared memory, or `copy.deepcopy`.
    ///
    /// A cancelled `recv` has taken nothing.
    ///
    /// Raises:
    ///     StreamClosed: After the last result.
    ///     StreamBusy: When another task is waiting to receive, or from another thread or event
    ///         loop.
    ///     WorkerDied: When the stream's worker process has died, after the results before that.
    ///     Exception: The exception of the function, after the results before it.
    #[pyo3(signature = (*, copy=false))]
    fn recv(&self, copy: bool) -> Operation {
        Operation::new(self.core.clone(), What::Recv(copy))
    }

    /// Send every event of an iterable, in order, as `send` would.
    ///
    /// It takes an event from the iterable when there is room for it. A cancelled `send_batch` may
    /// have sent some of the events; one that was taken and not sent goes before the next one that
    /// is sent.
    ///
    /// Raises:
    ///     BufferFull: With `full="error"`; its `sent` is the number of events that were accepted.
    ///     Exception: Exceptions of `send` and of the iterable; the events before it are sent.
    fn send_batch(&self, events: &Bound<'_, PyAny>) -> PyResult<Operation> {
        check_source(events)?;
        let source = events.try_iter()?.into_any().unbind();
        Ok(Operation::new(self.core.clone(), What::SendBatch(source)))
    }

    /// Receive at least one result, and all others that are there, at most `max`.
    ///
    /// It waits only for the first one. `copy` has the same meaning as in `recv`. A cancelled
    /// `recv_batch` has taken nothing.
    ///
    /// Raises:
    ///     ValueError: When `max` is less than 1.
    ///     Exception: Exceptions of `recv`, after the results before them.
    #[pyo3(signature = (max=256, *, copy=false))]
    fn recv_batch(&self, max: isize, copy: bool) -> PyResult<Operation> {
        let max = usize::try_from(max).unwrap_or(0);
        if max == 0 {
            return Err(pyo3::exceptions::PyValueError::new_err(
                "`max` must be at least 1",
            ));
        }
        Ok(Operation::new(
            self.core.clone(),
            What::RecvBatch(max, copy),
        ))
    }

    /// Ends the input.
    fn _end(&self, why: String) -> Operation {
        Operation::new(self.core.clone(), What::End(why))
    }

    /// Ends the input without waiting; false when there is no room for that now.
    fn _try_end(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        self.core.try_end(py, why)
    }

    /// Detaches from a session, without waiting; false if there is no room for that now.
    fn _try_detach(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        self.core.try_detach(py, why)
    }

    fn __aiter__(&self) -> Results {
        Results::drain(self.core.clone())
    }

    /// Feeds a plain iterator.
    fn _feed(&self, source: &Bound<'_, PyAny>) -> PyResult<Results> {
        Results::feed(self.core.clone(), source.try_iter()?.as_any())
    }

    /// Feeds a plain iterator, ends the input, and collects all results.
    fn _run(&self, source: &Bound<'_, PyAny>) -> PyResult<Run> {
        Run::new(self.core.clone(), source.try_iter()?.as_any())
    }

    /// The results while another task sends; see `Results._all_sent`.
    fn _feed_beside(&self) -> Results {
        Results::drain(self.core.clone())
    }

    /// Waits, while closing, until the stream may have ended; one wake-up.
    fn _wait_for_end(&self) -> Operation {
        Operation::new(self.core.clone(), What::Closing)
    }

    /// Waits, while another task receives, until every event may be handled; one wake-up.
    fn _wait_until_handled(&self) -> Operation {
        Operation::new(self.core.clone(), What::Handled)
    }

    /// Whether the stream was cancelled from this side.
    #[getter]
    fn _cancelled(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.core.state.with(py, |state| state.cancelled)?)
    }

    /// Whether a task is going to take the results.
    #[getter]
    fn _has_receiver(&self, py: Python<'_>) -> PyResult<bool> {
        self.core.has_receiver(py)
    }

    /// Sends an event that was taken from a source: it goes before all events that tasks send from now
    /// on. Waits for room with any setting of `full`.
    fn _send_taken(&self, py: Python<'_>, event: Py<PyAny>) -> PyResult<Operation> {
        self.core.put_back(py, event)?;
        Ok(Operation::new(self.core.clone(), What::SendPutBack))
    }

    /// Whether the input was closed from this side, rather than by the function's end.
    #[getter]
    fn _input_ended(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.core.state.with(py, |state| state.closed.is_some())?)
    }

    /// The available results, without waiting, and whether the stream has ended.
    fn _drain<'py>(&self, py: Python<'py>, max: usize) -> PyResult<(Bound<'py, PyList>, bool)> {
        let results = PyList::empty(py);
        let (_, over) = self.core.drain(py, max, |result| results.append(result))?;
        Ok((results, over))
    }

    /// Notes that the stream is in use.
    fn _touch(&self, py: Python<'_>) -> PyResult<()> {
        self.core.touch(py)
    }

    /// Notes that the stream was last used `seconds` earlier: a test has moved the clock.
    fn _age(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        Ok(self.core.state.with(py, |state| state.age(seconds))?)
    }

    /// Seconds since the stream was last used.
    fn _idle(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.core.state.with(py, |state| state.idle())?)
    }

    /// The reason why nothing can be sent any more, or None.
    #[getter]
    fn _closed(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let here = self.core.state.with(py, |state| state.closed())?;
        Ok(here.or_else(|| self.core.is_of_parent()))
    }

    /// Whether the last result was taken.
    #[getter]
    fn _over(&self, py: Python<'_>) -> PyResult<bool> {
        let over = self.core.state.with(py, |state| state.over.is_some())?;
        Ok(over || self.core.is_of_parent().is_some())
    }

    /// Closes the input and cancels the function, without waiting for its end.
    fn _cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.core.abandon(py)
    }

    /// A callable that cancels the function, without a reference to this stream.
    #[getter]
    fn _canceller(&self) -> Canceller {
        Canceller(self.core.cancel.clone())
    }

    /// Whether a result was taken since the last event was accepted.
    #[getter]
    fn _answered(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self
            .core
            .state
            .with(py, |state| state.meter.is_answered())?)
    }

    /// Events accepted and events handled.
    fn _progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.core.channel.progress(py)
    }

    /// The fields of `StreamMetrics`, as a dict.
    fn _metrics(&self, py: Python<'_>) -> PyResult<StreamFigures> {
        let (accepted, handled) = self.core.channel.progress(py)?;
        let (bytes_in, bytes_out) = self.core.channel.bytes(py)?;
        let (here, beyond) = self.core.channel.dropped(py)?;
        let (received, figures, duration) = self.core.state.wait_with(py, |state| {
            let meter = &mut state.meter;
            self.core.follow(py, meter);
            (
                meter.results(),
                Figures::of(meter.latencies()),
                meter.duration(),
            )
        })?;
        Ok(StreamFigures {
            events: accepted + here,
            results: received,
            bytes_in,
            bytes_out,
            queued: accepted.saturating_sub(handled),
            dropped: here + beyond,
            latency_p50: figures.p50,
            latency_p95: figures.p95,
            latency_p99: figures.p99,
            duration,
        })
    }
}

/// The fields of `StreamMetrics`.
#[derive(IntoPyObject)]
struct StreamFigures {
    events: u64,
    results: u64,
    bytes_in: u64,
    bytes_out: u64,
    queued: u64,
    dropped: u64,
    latency_p50: Option<f64>,
    latency_p95: Option<f64>,
    latency_p99: Option<f64>,
    duration: f64,
}
