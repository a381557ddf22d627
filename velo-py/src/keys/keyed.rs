//! The caller's side of all keys of one function: which key has which lane, what may be sent, what has
//! come.
//!
//! It never waits: whoever iterates does so, on [`Keys::sleep`]. What takes Python to do (opening a
//! lane, a permit of `max_concurrent`, closing) is asked of the `host`, which says when it is done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use pyo3::intern;
use pyo3::prelude::*;
use velo_shm::{fork, ticks};

use super::index::{Index, Stage};
use super::journal::Keep;
use super::key_of::KeyOf;
use super::lane::{Lane, Way};
use super::outlet::{InlineOutlet, Outlet};
use super::remote_lane::RemoteLane;
use super::routing::{AfterEnd, OnError, Out, State};
use super::table::KeyTable;
use crate::cell::GilCell;
use crate::errors;
use crate::ffi::send_slot::Step;
use crate::ffi::turn;
use crate::function::eager::note_name;
use crate::lane_frames::Terms;
use crate::process::client::told::Told;
use crate::user::function_stats::FunctionStats;
use crate::user::key_counts::{Counts, SharedCounts};
use crate::user::stream::Opened;
use crate::user::turn_budget::TurnBudget;
use crate::wait::{Group, running_loop};

/// The most results of an inline table that the caller has not seen.
const RESULTS: usize = 256;

/// All keys of one function, as one caller has them.
#[pyclass(frozen, module = "velo._core")]
pub struct Keys {
    pub(super) state: GilCell<State>,
    pub(super) group: Arc<Group>,
    pub(super) counts: Arc<SharedCounts>,
    pub(super) stint: TurnBudget,
    /// How many operations let other tasks run before they begin.
    pub(super) standing_back: AtomicUsize,
    pub(super) key_of: KeyOf,
    pub(super) began: u64,
    /// In which generation of forks it was made.
    born: u32,
}

/// What a caller asks for.
type Settings<'py> = (
    u32,
    u64,
    u64,
    Option<usize>,
    bool,
    String,
    usize,
    Bound<'py, PyAny>,
);

#[pymethods]
impl Keys {
    /// `settings` are `buffer`, `max_pending`, `max_bytes`, `max_concurrent`, whether there is a
    /// `timeout`, `finished_keys`, how many finished keys are remembered, and `on_error`. `recovery` is `journal_limit`,
    /// whether the function has a `state`, and `max_restarts`, of keys that outlive their workers.
    #[new]
    #[pyo3(signature = (host, source, live, key, most_lanes, settings, recovery=None))]
    fn new(
        host: Py<PyAny>,
        source: Py<PyAny>,
        live: bool,
        key: &Bound<'_, PyAny>,
        most_lanes: usize,
        settings: Settings<'_>,
        recovery: Option<(usize, bool, u32)>,
    ) -> PyResult<Self> {
        let (window, max_pending, max_bytes, concurrent, timeout, after, most, on_error) = settings;
        let after_end = match &*after {
            "restart" => AfterEnd::Restart,
            "raise" => AfterEnd::Raise,
            _ => AfterEnd::Ignore,
        };
        let on_error = match on_error.extract::<String>().as_deref() {
            Ok("drop") => OnError::Drop,
            Ok(_) => OnError::Raise,
            Err(_) => OnError::Call(on_error.unbind()),
        };
        let state = State {
            index: Index::default(),
            lanes: Vec::new(),
            most_lanes,
            opening: 0,
            host: Some(host),
            source: Some(source),
            live,
            held: None,
            out: VecDeque::new(),
            unopened: VecDeque::new(),
            reserved: 0,
            wanting: 0,
            ending: 0,
            waiting: 0,
            window,
            max_pending,
            max_bytes,
            limited: concurrent.is_some(),
            in_line: false,
            ordered: concurrent.is_some() || timeout,
            timed: timeout,
            after_end,
            most_finished: most,
            on_error,
            told_end: None,
            error: None,
            closing: false,
            over: false,
            aged: 0,
            counts: Counts::default(),
            tracker: None,
            traces: false,
            live_form: None,
            keep: recovery.map(|(limit, has_state, max_restarts)| Keep {
                limit,
                has_state,
                max_restarts,
            }),
            full: Vec::new(),
            failed_at: None,
            stillborn: 0,
        };
        Ok(Keys {
            state: GilCell::new(state),
            group: Arc::default(),
            counts: Arc::default(),
            stint: TurnBudget::default(),
            standing_back: AtomicUsize::new(0),
            key_of: KeyOf::new(key)?,
            began: ticks::now(),
            born: fork::generation(),
        })
    }

    /// Runs keys in this thread and event loop.
    fn add_inline(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        function: (Py<PyAny>, bool),
        name: String,
        deadline: Option<f64>,
    ) -> PyResult<()> {
        let context = turn::copy_context(py)?;
        note_name(context.bind(py), &pyo3::types::PyString::new(py, &name))?;
        let outlet = InlineOutlet::new(RESULTS, self.group.clone());
        let terms = self.terms(py)?;
        let table = KeyTable::new(
            event_loop,
            context,
            function,
            name,
            (terms, None, deadline),
            Outlet::Inline(outlet),
        );
        self.add(py, Way::Inline(table))
    }

    /// Runs keys where this stream, which is a lane, has been opened.
    fn add_lane(&self, py: Python<'_>, opened: &Opened) -> PyResult<()> {
        self.add(py, Way::Ring(opened.core().clone()))
    }

    /// Runs keys on another machine.
    fn add_remote_lane(&self, py: Python<'_>, lane: Py<RemoteLane>) -> PyResult<()> {
        self.add(py, Way::Remote(Arc::new(lane)))
    }

    /// From now on there may be so many lanes.
    fn set_most_lanes(&self, py: Python<'_>, most: usize) -> PyResult<()> {
        self.state.with(py, |state| state.most_lanes = most)?;
        self.nudge(py);
        Ok(())
    }

    /// No more lanes can be had. Without any, that is an error.
    fn no_lane(&self, py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.state.with(py, |state| {
            state.opening -= 1;
            state.most_lanes = state.open_lanes() + state.opening;
            if state.most_lanes == 0 {
                state.error = Some(PyErr::from_value(error.clone()));
            }
        })?;
        self.nudge(py);
        Ok(())
    }

    /// A permit was taken for a key.
    fn add_permit(&self, py: Python<'_>) -> PyResult<()> {
        let unwanted = self.state.with(py, |state| {
            state.in_line = false;
            let wants = state.reserved < state.unopened.len();
            if wants {
                state.reserved += 1;
                state.wanting -= 1;
                return None;
            }
            state.host(py)
        })?;
        if let Some(host) = unwanted {
            host.call_method0(py, intern!(py, "give_permit"))?;
        }
        self.nudge(py);
        Ok(())
    }

    /// Something outside has failed.
    fn fail(&self, py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.state.with(py, |state| {
            state
                .error
                .get_or_insert_with(|| PyErr::from_value(error.clone()));
        })?;
        self.nudge(py);
        Ok(())
    }

    /// Enters what they do in the statistics of their function.
    fn enter(&self, py: Python<'_>, statistics: &FunctionStats) -> PyResult<()> {
        statistics.enter_keys(py, &self.counts)
    }

    /// Has the task that iterates look again.
    pub(super) fn nudge(&self, py: Python<'_>) {
        self.group.tell(py, py.None());
    }

    /// Cancels all there is, without waiting.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let ways = self.state.with(py, |state| {
            state.closing = true;
            state.lanes.iter_mut().for_each(|lane| {
                lane.outgoing.clear();
            });
            state.ways()
        })?;
        self.nudge(py);
        ways.iter().try_for_each(|(_, way)| way.cancel(py))
    }

    /// Whether this process was forked from the one that the lanes belong to.
    #[getter]
    fn of_parent(&self, py: Python<'_>) -> PyResult<bool> {
        self.is_of_parent(py)
    }

    /// Tells lanes that no more keys come.
    fn end_lanes(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_of_parent(py)? {
            return Ok(());
        }
        let ways = self.state.with(py, |state| {
            state.closing = true;
            state.ways()
        })?;
        self.nudge(py);
        ways.iter().try_for_each(|(_, way)| way.end(py))
    }

    /// Drops what lanes say, and steps what is to end here. Whether all of them are over.
    fn discard(&self, py: Python<'_>) -> PyResult<bool> {
        if self.is_of_parent(py)? {
            return Ok(true);
        }
        let ways = self.state.with(py, |state| state.ways())?;
        let mut over = true;
        for (number, way) in ways {
            loop {
                match way.told(py, false) {
                    Ok(Told::Message(message)) => self.count_last(py, number, &message)?,
                    Ok(Told::Nothing | Told::Over(..)) => break,
                    Err(error) => {
                        error.write_unraisable(py, None);
                        break;
                    }
                }
            }
            way.read(py)?;
            over &= way.is_over(py)?;
        }
        Ok(over)
    }

    /// What to wait on until lanes may have something to say.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.group.take(py)?;
        let future = self.group.wait().start(&running_loop(py)?)?;
        let ways = self.state.with(py, |state| state.ways())?;
        let mut there = false;
        for (_, way) in ways {
            there |= way.may_go_on(py)? || !way.watch(py, &self.group, (false, false))?;
        }
        if there {
            self.group.wait().wake(py);
        }
        future.setattr(py, intern!(py, "_asyncio_future_blocking"), false)?;
        Ok(future)
    }

    /// Lets go of everything.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        let left = self.state.with(py, |state| {
            state.over = true;
            state.counts.exact = state.live() == 0;
            (state.counts.live, state.counts.pending) = (0, 0);
            state.counts.ended = state.counts.opened;
            self.counts.tell(py, state.counts);
            let permits = state.permits();
            state.reserved = 0;
            let left = (
                state.ways(),
                std::mem::take(&mut state.lanes),
                std::mem::take(&mut state.index),
                // Tasks that receive results do so to the end.
                match state.live_form {
                    Some(_) => VecDeque::new(),
                    None => std::mem::take(&mut state.out),
                },
                state.source.take(),
                state.host.take(),
            );
            (left, permits)
        })?;
        let (left, permits) = left;
        if let Some(host) = &left.5 {
            for _ in 0..permits {
                host.call_method0(py, intern!(py, "give_permit"))?;
            }
        }
        left.0.iter().for_each(|(_, way)| way.clear(py));
        drop(left);
        self.group.wait().wake(py);
        Ok(())
    }

    /// For how many seconds the key has not been used that was used least recently.
    fn idle(&self, py: Python<'_>) -> PyResult<f64> {
        let now = self.now();
        let idle = self.state.with(py, |state| match state.index.oldest() {
            Some(entry) => (now + state.aged).saturating_sub(state.index.entry(entry).used),
            None => 0,
        })?;
        Ok(f64::from(idle) / 1000.0)
    }

    /// Ends the input of keys that were not used for these seconds.
    fn expire(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let now = self.now();
        let limit = (seconds * 1000.0) as u32;
        self.state.with(py, |state| {
            let now = now + state.aged;
            let mut next = state.index.oldest();
            while let Some(entry) = next {
                next = state.index.newer(entry);
                let known = state.index.entry(entry);
                let idle = now.saturating_sub(known.used);
                let busy = known.in_flight > 0 || known.unsent() > 0 || known.ends;
                if known.stage != Stage::Open || busy {
                    if busy {
                        known.used = now; // its time begins when the work is seen to be done
                    }
                    continue;
                }
                if idle < limit {
                    break;
                }
                state.make_leave(py, entry);
            }
        })?;
        self.nudge(py);
        Ok(())
    }

    /// Has keys be idle for so much longer: a clock of tests was moved.
    fn age(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            state.aged = state.aged.saturating_add((seconds * 1000.0) as u32);
        })?)
    }
}

impl Keys {
    pub(super) fn now(&self) -> u32 {
        let since = ticks::to_duration(ticks::now().saturating_sub(self.began));
        since.as_millis() as u32
    }

    pub(super) fn terms(&self, py: Python<'_>) -> PyResult<Terms> {
        Ok(self.state.with(py, |state| Terms {
            window: state.window,
            tells_all: state.timed || state.tracker.is_some() || state.keep.is_some(),
            restarts: state.after_end == AfterEnd::Restart,
            recovers: state.keep.is_some() || state.saving().is_some(),
            on_request: state.saving().is_some(),
            traces: state.traces,
        })?)
    }

    pub(super) fn add(&self, py: Python<'_>, way: Way) -> PyResult<()> {
        way.agree(py, self.terms(py)?)?;
        self.state.with(py, |state| {
            state.opening = state.opening.saturating_sub(1);
            let over = state.lanes.iter().position(|lane| lane.over);
            match over {
                Some(number) => state.lanes[number] = Lane::new(way), // no key has that any more
                None => state.lanes.push(Lane::new(way)),
            }
        })?;
        self.nudge(py);
        Ok(())
    }

    /// The next result with its key, if one is there.
    #[inline]
    pub(super) fn taken(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.state.with(py, |state| match state.out.pop_front() {
            Some(Out::Item(item)) => Some(item),
            Some(failed) => {
                state.out.push_front(failed);
                None
            }
            None => None,
        })?)
    }

    /// Whether something else is next among the results: what has failed, or a mark.
    #[inline]
    pub(super) fn holds(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |state| {
            matches!(state.out.front(), Some(Out::Held(_) | Out::Mark(..)))
        })?)
    }

    /// Calls `on_error` for a key whose function has raised, if one is next.
    pub(super) fn tell_failure(&self, py: Python<'_>) -> PyResult<()> {
        let failed = self.state.with(py, |state| match state.out.front() {
            Some(Out::Failed(..)) => match (state.out.pop_front(), &state.on_error) {
                (Some(Out::Failed(key, error)), OnError::Call(call)) => {
                    Some((key, error, call.clone_ref(py)))
                }
                _ => None,
            },
            _ => None,
        })?;
        if let Some((key, error, call)) = failed
            && let Err(raised) = call.call1(py, (key, error.value(py)))
        {
            self.state.with(py, |state| {
                state.error = state.error.take().or(Some(raised))
            })?;
        }
        Ok(())
    }

    /// The same, or what to wait for; None at the end.
    pub(super) fn next(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        self.check_process(py)?;
        loop {
            if let Some(item) = self.taken(py)? {
                return Ok(Some(Step::Return(item)));
            }
            if self.holds(py)? {
                return Ok(Some(Step::Return(py.None()))); // `take` has it
            }
            self.tell_failure(py)?;
            if self.stint.is_over() {
                return Ok(Some(Step::Yield(py.None())));
            }
            let (over, closing) = self.state.with(py, |state| (state.over, state.closing))?;
            if over {
                return Ok(None);
            }
            if closing {
                return self.finish(py, false); // another task closes it
            }
            let mut progress = self.restore_some(py)?;
            progress |= self.read(py)?;
            if !self.has_failed(py)? {
                self.leave_workers(py)?;
                progress |= self.fill(py)?;
                progress |= self.open_some(py)?;
                progress |= self.act(py)?;
                progress |= self.read(py)?;
                progress |= self.fail_full(py)?;
            }
            let (there, failed, done) = self.state.with(py, |state| {
                state.counts.live = state.live() as u64;
                state.counts.pending = state.pending();
                let counts = &mut state.counts;
                let taken = counts.events.saturating_sub(counts.pending);
                counts.taken = counts.taken.max(taken);
                (
                    !state.out.is_empty(),
                    state.error.is_some(),
                    state.source.is_none() && state.live() == 0,
                )
            })?;
            self.show(py)?;
            if there {
                continue;
            }
            if failed || done {
                return self.finish(py, failed);
            }
            if !progress && let Some(future) = self.sleep(py)? {
                self.stint.ended();
                return Ok(Some(Step::Yield(future)));
            }
        }
    }

    /// Refuses use in a process that was forked since, whose parent the workers serve. Keys that run
    /// inline were forked with it.
    fn check_process(&self, py: Python<'_>) -> PyResult<()> {
        match self.is_of_parent(py)? {
            false => Ok(()),
            true => Err(errors::closed(
                "these keys belong to the process that this one was forked from; iterate over a \
                 `keyed` of its own in this process",
            )),
        }
    }

    fn is_of_parent(&self, py: Python<'_>) -> PyResult<bool> {
        if self.born == fork::generation() {
            return Ok(false);
        }
        Ok(self.state.with(py, |state| {
            let ring = |lane: &Lane| matches!(lane.way, Way::Ring(_) | Way::Remote(_));
            state.opening > 0 || state.lanes.iter().any(ring)
        })?)
    }

    /// Everything ends with this error, unless it does with another one.
    pub(super) fn set_error(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        self.state
            .with(py, |state| state.error.get_or_insert(error).clone_ref(py))?;
        Ok(())
    }

    pub(super) fn has_failed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |state| state.error.is_some())?)
    }

    /// Lets go of everything if nothing was ever asked of it.
    pub(super) fn clear_unused(&self, py: Python<'_>) -> PyResult<()> {
        let unused = self.state.with(py, |state| {
            !state.over && state.lanes.is_empty() && state.opening == 0
        })?;
        match unused {
            true => self.clear(py),
            false => Ok(()),
        }
    }

    /// Closes everything, and then raises what has failed: the next step waits for a task that does.
    pub(super) fn finish(&self, py: Python<'_>, failed: bool) -> PyResult<Option<Step>> {
        let host = self.state.with(py, |state| {
            state.closing = true;
            state.host(py)
        })?;
        let Some(host) = host else {
            return Ok(None);
        };
        let closed = host
            .bind(py)
            .call_method1(intern!(py, "closes"), (failed,))?;
        closed.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        Ok(Some(Step::Yield(closed.unbind())))
    }

    /// What it ended with, once.
    pub(super) fn take_error(&self, py: Python<'_>) -> PyResult<Option<PyErr>> {
        Ok(self.state.with(py, |state| match state.over {
            true => state.error.take(),
            false => None,
        })?)
    }

    /// What to sleep on; None when something has come meanwhile.
    pub(super) fn sleep(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        if !self.group.is_empty(py)? {
            self.group.take(py)?;
            return Ok(None);
        }
        let lanes = self.state.with(py, |state| {
            let bulk = !state.live || state.source.is_none();
            let lanes = state.lanes.iter();
            lanes
                .filter(|lane| !lane.over)
                .map(|lane| (lane.way.clone(), (!lane.outgoing.is_empty(), bulk)))
                .collect::<Vec<_>>()
        })?;
        if let [(way, (stuck, _))] = &*lanes {
            way.spin(py, *stuck)?;
        }
        let future = self.group.wait().start(&running_loop(py)?)?;
        for (way, want) in lanes {
            if way.may_go_on(py)? || !way.watch(py, &self.group, want)? {
                self.group.wait().clear(py);
                return Ok(None);
            }
        }
        Ok(Some(future))
    }

    /// The wait of the task that iterates is given up. While all is closed, the one that closes waits there.
    pub(super) fn stop(&self, py: Python<'_>) {
        if !self.state.with(py, |state| state.closing).unwrap_or(true) {
            self.group.wait().clear(py);
        }
    }
}
