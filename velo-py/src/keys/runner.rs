//! The worker's end of a lane: moves frames between its rings and its key table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use pyo3::prelude::*;
use velo_shm::{Allowance, ticks};

use super::table::KeyTable;
use super::turn::Turn;
use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::function::flush_timer::FlushTimer;
use crate::process::worker::lane::Frame;
use crate::process::worker::ring_port::RingPort;

/// The time after which the other tasks of the loop have their turn.
const TURN: Duration = Duration::from_micros(500);
/// The most frames that are read before runnable keys are stepped, and the most keys that are stepped
/// before frames are read.
const BATCH: usize = 64;

/// The coroutine of a lane's task.
#[pyclass(frozen, module = "velo._core")]
pub struct LaneRunner {
    port: Arc<RingPort>,
    pub(super) table: Arc<KeyTable>,
    pace: FlushTimer,
    /// The lane was cancelled. `failure` has the reason of its end.
    cancelled: AtomicBool,
    finished: AtomicBool,
    failure: GilCell<Option<PyErr>>,
    turn: u64,
}

enum Work {
    /// Other tasks have their turn.
    Yield,
    Wait(Py<PyAny>),
    Done,
}

impl LaneRunner {
    /// Runs the keys of `table` with the frames that come through `port`.
    pub fn new(port: Arc<RingPort>, table: Arc<KeyTable>) -> Self {
        LaneRunner {
            port,
            table,
            pace: FlushTimer::default(),
            cancelled: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            failure: GilCell::default(),
            turn: ticks::from_duration(TURN),
        }
    }

    fn advance(&self, py: Python<'_>) -> PyResult<Step> {
        if self.finished.load(Relaxed) {
            return Ok(Step::Return(py.None()));
        }
        let allowance = self.table.allowance();
        let work = self
            .port
            .observe_lane(allowance, || self.work(py, allowance));
        let work = work.or_else(|error| {
            self.fail(py, error)?;
            Ok::<_, PyErr>(Work::Yield)
        })?;
        match work {
            Work::Yield => Ok(Step::Yield(py.None())),
            Work::Wait(future) => Ok(Step::Yield(future)),
            Work::Done => {
                self.finished.store(true, Relaxed);
                let failure = self.failure.with(py, Option::take)?;
                let outcome = failure.map_or(Ok(()), Err);
                self.port.finish(py, outcome);
                self.table.clear(py);
                Ok(Step::Return(py.None()))
            }
        }
    }

    /// The lane has read invalid data: its keys are cancelled, and it ends with this error.
    fn fail(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        let first = self.failure.with(py, |failure| {
            let first = failure.is_none();
            failure.get_or_insert(error);
            first
        })?;
        match first {
            true => self.cancel(py),
            false => Ok(()),
        }
    }

    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.cancelled.store(true, Relaxed);
        self.port.cancel(py);
        self.table.cancel_all(py)
    }

    fn work(&self, py: Python<'_>, allowance: Option<Allowance>) -> PyResult<Work> {
        let began = ticks::now();
        loop {
            if self.table.is_blocked(py)? {
                self.table.unblock(py)?;
            }
            let mut turn = Turn::of(py, &self.table);
            let mut idle = true;
            for _ in 0..BATCH {
                let Some(frame) = self
                    .port
                    .next_frame(py, |name| self.table.reads(py, name))?
                else {
                    break;
                };
                idle = false;
                self.take(&mut turn, frame)?;
                if self.pace.flush_is_due() {
                    self.port.flush(py);
                    self.port.allow(allowance);
                }
            }
            if self.table.has_runnable(py)? {
                idle = false;
                self.table.drive(&mut turn, BATCH)?;
            }
            drop(turn);
            self.table.tell_handled(py, idle)?;
            if idle {
                if self.is_over(py)? {
                    return Ok(Work::Done);
                }
                self.port.flush(py);
                let blocked = self.table.is_blocked(py)?;
                if let Some(future) = self.port.wait_frame(py, blocked)? {
                    return Ok(Work::Wait(future));
                }
            }
            if ticks::now().saturating_sub(began) > self.turn {
                self.port.flush(py);
                return Ok(Work::Yield);
            }
        }
    }

    fn is_over(&self, py: Python<'_>) -> PyResult<bool> {
        let ended = self.port.has_input_ended(py) || self.cancelled.load(Relaxed);
        Ok(ended && self.table.live(py)? == 0)
    }

    #[inline]
    fn take(&self, turn: &mut Turn<'_, '_>, frame: Frame<'_>) -> PyResult<()> {
        let (py, table) = (turn.py(), &self.table);
        match frame {
            Frame::Event(name, event, len, request) => {
                table.has_read();
                if request {
                    table.note_request(py, name)?;
                }
                match event {
                    Ok(event) => table.deliver(turn, name, event.unbind(), len),
                    Err(error) => {
                        let error = error.into_value(py).into_any();
                        table.deliver(turn, name, error, super::slot::UNREADABLE)
                    }
                }
            }
            Frame::Open(name, text, state) => {
                table.watching.opens(py, name.id, text);
                table.open(py, name, &state)
            }
            Frame::Last(name) => table.last(turn, name),
            Frame::Cancel(name) => table.cancel(py, name),
            Frame::Save(name) => table.save_soon(py, name),
            Frame::Terms(terms) => table.agree(py, terms),
            Frame::End => Ok(()),
        }
    }
}

impl Awaitable for LaneRunner {
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let this = slf.get();
        // Who calls a slot is not known to be attached: what is dropped would be kept for later.
        Ok(Python::attach(|py| this.advance(py))?)
    }

    /// The lane was cancelled: its keys are cancelled, and it ends with the last of them.
    fn throw(slf: &Bound<'_, Self>, _error: PyErr) -> PyResult<Step> {
        let (py, this) = (slf.py(), slf.get());
        this.port.stop_waiting(py);
        if this.failure.with(py, |failure| failure.is_none())? {
            let error = errors::closed("the stream function was cancelled");
            this.fail(py, error)?;
        }
        this.advance(py)
    }
}

#[pymethods]
impl LaneRunner {
    fn close(&self) {}

    #[getter]
    fn __qualname__(&self) -> String {
        self.table.name.clone()
    }
}

coroutine_methods!(LaneRunner);
