//! How long a stream function may take: for one event, and for one step.
//!
//! The time of an event runs from the moment the function takes it until it asks for the next one.
//! Time in which other functions hold the event loop does not count, nor does time in which a result
//! waits for its receiver. One timer per stream enforces it. The timer is not set for every event: one
//! that comes too early is set again.

use std::cell::Cell;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pyo3::exceptions::asyncio::CancelledError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use velo_shm::standstill::{self, RunningLimit};
use velo_shm::{Allowance, Setting, ticks};

use crate::cell::GilCell;
use crate::errors;
use crate::function::port::Port;

/// A function whose time is up has so much for its `finally` blocks, or as much as it had for the
/// event if that is less.
const GRACE: Duration = Duration::from_secs(1);
/// The least of that time.
const LEAST_GRACE: Duration = Duration::from_millis(100);
/// A timer that is this late is late because a task held the loop.
const LATE: Duration = Duration::from_millis(20);

/// Timers may be this much early.
const EARLY: Duration = Duration::from_millis(1);

thread_local! {
    /// How many ticks the functions of this thread have run for.
    static RAN: Cell<u64> = const { Cell::new(0) };
}

/// Some function of this thread has run for this many ticks.
#[inline]
pub fn ran(ticks: u64) {
    RAN.set(RAN.get().wrapping_add(ticks));
}

/// One stream's limits.
pub struct Deadline {
    stream: String,
    stall: Option<Duration>,
    event: Option<Duration>,
    port: Port,
    state: GilCell<State>,
    this: Weak<Deadline>,
}

#[derive(Default)]
struct State {
    /// The event that the function has.
    current: Option<Current>,
    /// A timer runs, and is due then.
    due: Option<f64>,
    /// While the timer runs: time in which this process stands still is not the function's.
    limit: Option<RunningLimit>,
    /// It has waited once for other tasks that held the loop.
    waited: bool,
    /// A weak reference to the function's task.
    task: Option<Py<PyAny>>,
    /// The function's time was up.
    expired: Option<Py<PyAny>>,
    /// Its stream has ended with that, although it goes on.
    given_up: bool,
    /// How many ticks it has run for.
    ran: u64,
    /// A test turns the clock of the loop, which does not go on while this process stands still.
    turned: bool,
}

/// Times are those of the event loop, which a test may have turned.
#[derive(Clone, Copy)]
struct Current {
    number: u64,
    began: f64,
    /// What functions had run for when it began: this one, and all.
    ran: (u64, u64),
    /// Since when a result of it waits for room.
    paused: Option<f64>,
}

impl State {
    /// How long the function has been at its event.
    fn spent(&self, now: f64) -> Option<Duration> {
        let current = self.current.as_ref()?;
        let mine = self.ran.wrapping_sub(current.ran.0);
        let all = RAN.get().wrapping_sub(current.ran.1);
        let others = ticks::to_duration(all.saturating_sub(mine));
        let until = current.paused.unwrap_or(now);
        let spent = span(until - current.began).saturating_sub(others);
        // Only if there is much of it: standstills shorter than this are not noticed in any case.
        let stood = match spent < LATE || self.turned {
            true => Duration::ZERO,
            false => standstill::within(span(now - current.began)),
        };
        Some(spent.saturating_sub(stood))
    }
}

/// Whether a test turns the clock of this loop, as `VirtualClock` lets it.
fn is_turned(event_loop: &Bound<'_, PyAny>) -> bool {
    let turned = event_loop.getattr_opt(intern!(event_loop.py(), "_is_turned"));
    turned.is_ok_and(|turned| turned.is_some_and(|turned| turned.is_truthy().unwrap_or(false)))
}

impl Deadline {
    /// The limits of the stream `stream` in seconds; None when there are none.
    pub fn new(
        py: Python<'_>,
        stream: String,
        port: &Port,
        stall: Option<f64>,
        event: Option<f64>,
    ) -> Option<Arc<Deadline>> {
        let limit = |seconds: Option<f64>| Duration::try_from_secs_f64(seconds?).ok();
        let (stall, event) = (limit(stall), limit(event));
        (stall.is_some() || event.is_some()).then(|| {
            Arc::new_cyclic(|this| Deadline {
                stream,
                stall,
                event,
                port: port.clone(),
                state: GilCell::new(State {
                    turned: event.is_some() && is_turned(port.event_loop().bind(py)),
                    ..State::default()
                }),
                this: this.clone(),
            })
        })
    }

    /// The task that runs the function.
    pub fn set_task(&self, task: &Bound<'_, PyAny>) -> PyResult<()> {
        static REF: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = task.py();
        let weak = REF.import(py, "weakref", "ref")?.call1((task,))?.unbind();
        Ok(self.state.with(py, |state| state.task = Some(weak))?)
    }

    /// For how long a step may go on that begins now, or goes on with an event.
    pub fn allowance(&self, py: Python<'_>) -> Option<Allowance> {
        let by_stall = self.stall.map(|time| Allowance {
            time,
            setting: Setting::Stall,
        });
        let spent = match self.event {
            None => return by_stall,
            Some(_) => self.with_time(py, |state, now| state.spent(now)),
        };
        let by_event = spent.ok().flatten().zip(self.event).map(|(spent, limit)| {
            let time = limit.saturating_sub(spent);
            let setting = Setting::Event;
            Allowance { time, setting }
        });
        [by_stall, by_event]
            .into_iter()
            .flatten()
            .min_by_key(|allowance| allowance.time)
    }

    /// The function has run for this many ticks.
    pub fn ran(&self, py: Python<'_>, ticks: u64) {
        let _ = self
            .state
            .with(py, |state| state.ran = state.ran.wrapping_add(ticks));
    }

    /// The function asks for its next event.
    ///
    /// # Errors
    /// When it was too long at the one before.
    pub fn asks(&self, py: Python<'_>) -> PyResult<()> {
        let Some(limit) = self.event else {
            return Ok(());
        };
        let (late, expired) = self.with_time(py, |state, now| {
            let late = state.spent(now).is_some_and(|spent| spent > limit);
            (
                late,
                state.expired.as_ref().map(|error| error.clone_ref(py)),
            )
        })?;
        match expired {
            Some(error) => Err(PyErr::from_value(error.into_bound(py))),
            None if late => Err(PyErr::from_value(self.expire(py, None)?)),
            None => Ok(()),
        }
    }

    /// The function has taken an event.
    pub fn takes(&self, py: Python<'_>) -> PyResult<()> {
        let Some(limit) = self.event else {
            return Ok(());
        };
        let number = self.port.event(py);
        let arm = self.with_time(py, |state, now| {
            state.current = Some(Current {
                number,
                began: now,
                ran: (state.ran, RAN.get()),
                paused: None,
            });
            state.waited = false;
            state.due.is_none()
        })?;
        if arm {
            self.arm(py, limit)?;
        }
        Ok(())
    }

    /// The function has no event.
    pub fn rests(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| state.current = None)?)
    }

    /// A result waits for room: that is not the function's time.
    pub fn pauses(&self, py: Python<'_>) {
        let _ = self.with_time(py, |state, now| {
            if let Some(current) = &mut state.current {
                current.paused.get_or_insert(now);
            }
        });
    }

    /// It has found room.
    pub fn goes_on(&self, py: Python<'_>) {
        let _ = self.with_time(py, |state, now| {
            if let Some(current) = &mut state.current
                && let Some(since) = current.paused.take()
            {
                current.began += now - since;
            }
        });
    }

    /// Whether its time was up.
    pub fn has_expired(&self, py: Python<'_>) -> bool {
        let expired = |state: &mut State| state.expired.is_some();
        self.event.is_some() && self.state.with(py, expired).unwrap_or(false)
    }

    /// What the stream ends with. None: it has ended already.
    pub fn outcome(&self, py: Python<'_>, outcome: Result<(), PyErr>) -> Option<Result<(), PyErr>> {
        let taken = self.state.with(py, |state| {
            state.current = None;
            (state.expired.take(), state.given_up)
        });
        match (taken, outcome) {
            (Ok((_, true)), _) => None,
            (Ok((Some(expired), _)), outcome) => {
                let expired = PyErr::from_value(expired.into_bound(py));
                if let Err(error) = outcome
                    && !error.is_instance_of::<CancelledError>(py)
                    && !error.value(py).is(expired.value(py))
                {
                    expired.set_context(py, Some(error));
                }
                Some(Err(expired))
            }
            (_, outcome) => Some(outcome),
        }
    }

    fn arm(&self, py: Python<'_>, time: Duration) -> PyResult<()> {
        let alarm = Alarm(self.this.clone());
        let event_loop = self.port.event_loop().bind(py);
        event_loop.call_method1(intern!(py, "call_later"), (time.as_secs_f64(), alarm))?;
        self.with_time(py, |state, now| {
            state.due = Some(now + time.as_secs_f64());
            state.limit = self.event.map(RunningLimit::new);
        })
    }

    fn with_time<R>(&self, py: Python<'_>, work: impl FnOnce(&mut State, f64) -> R) -> PyResult<R> {
        let event_loop = self.port.event_loop().bind(py);
        let now = event_loop.call_method0(intern!(py, "time"))?.extract()?;
        Ok(self.state.with(py, |state| work(state, now))?)
    }

    fn on_time(&self, py: Python<'_>) -> PyResult<()> {
        let Some(limit) = self.event else {
            return Ok(());
        };
        let (late, expired, current, spent, waited) = self.with_time(py, |state, now| {
            let spent = state.spent(now);
            let expired = state.expired.is_some();
            let late = state.due.take().map(|due| span(now - due));
            state.limit = None;
            (late, expired, state.current, spent, state.waited)
        })?;
        if expired {
            return self.give_up(py);
        }
        let (Some(current), Some(spent), Some(late)) = (current, spent, late) else {
            return Ok(()); // the next event sets the timer again
        };
        if current.paused.is_some() {
            return self.arm(py, limit);
        }
        let left = limit.saturating_sub(spent);
        if left > EARLY {
            return self.arm(py, left);
        }
        if late > LATE && !waited {
            self.state.with(py, |state| state.waited = true)?;
            return self.arm(py, late.min(limit));
        }
        let task = self.task(py)?;
        self.expire(py, task.as_ref())?;
        if let Some(task) = task {
            task.call_method0(intern!(py, "cancel"))?;
        }
        self.arm(py, limit.clamp(LEAST_GRACE, GRACE))
    }

    fn task<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let weak = self.state.with(py, |state| {
            state.task.as_ref().map(|task| task.clone_ref(py))
        })?;
        let Some(weak) = weak else { return Ok(None) };
        let task = weak.into_bound(py).call0()?;
        Ok((!task.is_none()).then_some(task))
    }

    /// Notes that the time is up. Gives the error that says so, and where the function stands.
    fn expire<'py>(
        &self,
        py: Python<'py>,
        task: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static WHERE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let number = self.state.with(py, |state| {
            state.current.map_or(0, |current| current.number)
        })?;
        let seconds = self.event.unwrap_or_default().as_secs_f64();
        let error = errors::event_timeout(py, &self.stream, number, seconds);
        let error = error.into_value(py).into_bound(py).into_any();
        if let Some(task) = task {
            let describe = WHERE.import(py, "velo._diagnostics.await_trace", "describe")?;
            let stands = describe.call1((task,))?;
            if !stands.is_none() {
                error.call_method1(intern!(py, "add_note"), (stands,))?;
            }
        }
        let kept = error.clone().unbind();
        self.state.with(py, |state| state.expired = Some(kept))?;
        Ok(error)
    }

    /// The function does not end: its stream does, without it.
    fn give_up(&self, py: Python<'_>) -> PyResult<()> {
        let error = self.state.with(py, |state| {
            state.given_up = true;
            state.expired.as_ref().map(|error| error.clone_ref(py))
        })?;
        if let Some(error) = error {
            let error = PyErr::from_value(error.into_bound(py));
            self.port.finish(py, Err(error));
            self.port.flush(py);
        }
        Ok(())
    }
}

fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}

/// What the timer calls. It does not keep the stream alive.
#[pyclass(frozen)]
struct Alarm(Weak<Deadline>);

#[pymethods]
impl Alarm {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.0
            .upgrade()
            .map_or(Ok(()), |deadline| deadline.on_time(py))
    }
}
