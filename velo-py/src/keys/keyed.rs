//! The caller's side of all keys of one function: which key has which lane, what may be sent, what has
//! come.
//!
//! It never waits: whoever iterates does so, on [`Keys::sleep`]. What takes Python to do (opening a
//! lane, a place under `max_concurrent`, closing) is asked of the `host`, which says when it is done.

use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use velo_shm::ticks;

use super::counts::{Counts, SharedCounts};
use super::frames::{Name, Terms};
use super::index::{Index, Stage};
use super::key_of::KeyOf;
use super::lane::{Act, Lane, Way};
use super::outlet::{InlineOutlet, Message, Outlet};
use super::table::KeyTable;
use crate::cell::GilCell;
use crate::errors;
use crate::ffi::send_slot::Step;
use crate::ffi::turn;
use crate::function::eager::note_name;
use crate::process::client::Told;
use crate::user::function_stats::Ledger;
use crate::user::operation::next_of;
use crate::user::stream::Opened;
use crate::user::turn_budget::Stint;
use crate::wait::{Group, running_loop};

/// So many events are taken from a source before results are looked at, and so many results before
/// events are.
const BATCH: usize = 128;
/// Of keys that run in this thread, so many events are taken before their functions have their turn.
const INLINE_BATCH: usize = 32;
/// An inline table may have yielded so many results that the caller has not seen.
const RESULTS: usize = 256;
/// So many keys are told at a time that no more events come.
const ENDS: usize = 256;

/// What becomes of events for a key whose function has returned.
#[derive(Clone, Copy, PartialEq)]
enum AfterEnd {
    Ignore,
    Restart,
    Raise,
}

/// What becomes of a key whose function raises.
enum OnError {
    Raise,
    Drop,
    Call(Py<PyAny>),
}

/// All keys of one function, as one caller has them.
#[pyclass(frozen, module = "velo._core")]
pub struct Keys {
    state: GilCell<State>,
    group: Arc<Group>,
    counts: Arc<SharedCounts>,
    pub(super) stint: Stint,
    key_of: KeyOf,
    began: u64,
}

struct State {
    index: Index,
    lanes: Vec<Lane>,
    /// How many lanes there may be, and how many are on their way.
    most_lanes: usize,
    opening: usize,
    host: Option<Py<PyAny>>,
    /// Where events come from; None once it is exhausted.
    source: Option<Py<PyAny>>,
    /// More may come of it later: it says itself whether it is exhausted.
    live: bool,
    /// An event that cannot be sent before something else has happened.
    held: Option<(Py<PyAny>, Py<PyAny>, u64)>,
    /// What the caller gets next, in order.
    out: VecDeque<Out>,
    /// Entries that wait for a lane or for a place.
    unopened: VecDeque<u32>,
    /// How many of the first of those have a place.
    reserved: usize,
    /// How many keys want a place, and how many are about to give theirs back.
    wanting: usize,
    ending: usize,
    /// Events that wait in entries.
    waiting: u64,
    window: u32,
    max_pending: u64,
    max_bytes: u64,
    /// There is a `max_concurrent`.
    limited: bool,
    /// Somebody stands in line for a place.
    in_line: bool,
    /// The order of use is kept.
    ordered: bool,
    /// There is a `timeout`.
    timed: bool,
    after_end: AfterEnd,
    most_finished: usize,
    on_error: OnError,
    /// Keys are told that no more events come, up to this entry.
    told_end: Option<u32>,
    error: Option<PyErr>,
    closing: bool,
    over: bool,
    /// By how many milliseconds a clock of tests was moved.
    aged: u32,
    counts: Counts,
}

/// What a caller gets.
enum Out {
    /// A result with its key.
    Item(Py<PyAny>),
    /// The function of a key has raised, which `on_error` is called with.
    Failed(Py<PyAny>, PyErr),
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
    /// `timeout`, `finished_keys`, how many finished keys are remembered, and `on_error`.
    #[new]
    fn new(
        host: Py<PyAny>,
        source: Py<PyAny>,
        live: bool,
        key: &Bound<'_, PyAny>,
        most_lanes: usize,
        settings: Settings<'_>,
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
        };
        Ok(Keys {
            state: GilCell::new(state),
            group: Arc::default(),
            counts: Arc::default(),
            stint: Stint::default(),
            key_of: KeyOf::new(key)?,
            began: ticks::now(),
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

    /// No more lanes can be had. Without any, that is an error.
    fn no_lane(&self, py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.state.with(py, |state| {
            state.opening -= 1;
            state.most_lanes = state.lanes.len() + state.opening;
            if state.most_lanes == 0 {
                state.error = Some(PyErr::from_value(error.clone()));
            }
        })?;
        self.nudge(py);
        Ok(())
    }

    /// A place was taken for a key.
    fn add_place(&self, py: Python<'_>) -> PyResult<()> {
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
            host.call_method0(py, intern!(py, "give_place"))?;
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
    fn enter(&self, py: Python<'_>, statistics: &Ledger) -> PyResult<()> {
        statistics.enter_keys(py, &self.counts)
    }

    /// Has the one who iterates look again.
    fn nudge(&self, py: Python<'_>) {
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
        ways.iter().try_for_each(|(_, way)| way.cancel(py))
    }

    /// Tells lanes that no more keys come.
    fn end_lanes(&self, py: Python<'_>) -> PyResult<()> {
        let ways = self.state.with(py, |state| {
            state.closing = true;
            state.ways()
        })?;
        ways.iter().try_for_each(|(_, way)| way.end(py))
    }

    /// Drops what lanes say, and steps what is to end here. Whether all of them are over.
    fn discard(&self, py: Python<'_>) -> PyResult<bool> {
        let ways = self.state.with(py, |state| state.ways())?;
        let mut over = true;
        for (_, way) in ways {
            loop {
                match way.told(py) {
                    Ok(Told::Message(message)) => drop(message),
                    Ok(Told::Nothing | Told::Over(_)) => break,
                    Err(error) => error.write_unraisable(py, None),
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
            (state.counts.live, state.counts.pending) = (0, 0);
            self.counts.tell(py, state.counts);
            let left = (
                state.ways(),
                std::mem::take(&mut state.lanes),
                std::mem::take(&mut state.index),
                std::mem::take(&mut state.out),
                state.source.take(),
                state.host.take(),
            );
            let places = state.places();
            (left, places)
        })?;
        let (left, places) = left;
        if let Some(host) = &left.5 {
            for _ in 0..places {
                host.call_method0(py, intern!(py, "give_place"))?;
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

    /// Ends the input of keys that were not used for so many seconds.
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
                let busy = known.in_flight > 0 || !known.waiting.is_empty() || known.ends;
                if known.stage != Stage::Open || busy {
                    if busy {
                        known.used = now; // its time begins when the work is seen to be done
                    }
                    continue;
                }
                if idle < limit {
                    break;
                }
                state.end(entry);
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

impl State {
    fn ways(&self) -> Vec<(usize, Way)> {
        let lanes = self.lanes.iter().enumerate();
        lanes
            .filter(|(_, lane)| !lane.over)
            .map(|(number, lane)| (number, lane.way.clone()))
            .collect()
    }

    fn host(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.host.as_ref().map(|host| host.clone_ref(py))
    }

    /// How many keys have not ended.
    fn live(&self) -> usize {
        self.index.len() - self.index.finished()
    }

    /// How many places the keys have.
    fn places(&self) -> usize {
        if !self.limited {
            return 0;
        }
        let open = |stage| matches!(stage, Stage::Open | Stage::Ending);
        let entries = self.index.all();
        self.reserved + entries.filter(|(_, entry)| open(entry.stage)).count()
    }

    fn pending(&self) -> u64 {
        self.waiting + self.lanes.iter().map(Lane::pending).sum::<u64>()
    }

    /// The lane with the least to do.
    fn choose(&self) -> Option<usize> {
        let lanes = self.lanes.iter().enumerate();
        lanes
            .filter(|(_, lane)| !lane.over)
            .min_by_key(|(_, lane)| (lane.ids.live(), lane.pending()))
            .map(|(number, _)| number)
    }

    /// Opens a key that has a place.
    fn open(&mut self, entry: u32) -> PyResult<()> {
        let Some(number) = self.choose() else {
            return Err(errors::velo("there is no lane"));
        };
        let lane = &mut self.lanes[number];
        let (id, generation) = lane.ids.take(entry);
        let known = self.index.entry(entry);
        known.lane = number as u16;
        (known.id, known.generation) = (id, generation);
        known.in_flight = 0;
        known.stage = Stage::Open;
        lane.outgoing.push_back(Act::Open(Name { id, generation }));
        self.counts.opened += 1;
        self.send_waiting(entry);
        Ok(())
    }

    /// Sends what waits for a key, as far as it may have it.
    fn send_waiting(&mut self, entry: u32) {
        let known = self.index.entry(entry);
        let lane = &mut self.lanes[known.lane as usize];
        let name = Name {
            id: known.id,
            generation: known.generation,
        };
        while known.in_flight < self.window
            && let Some((event, _)) = known.waiting.pop()
        {
            known.in_flight += 1;
            lane.sent += 1;
            self.waiting -= 1;
            lane.outgoing.push_back(Act::Event(name, event));
        }
        if known.ends && known.waiting.is_empty() {
            known.ends = false;
            known.stage = Stage::Ending;
            lane.outgoing.push_back(Act::Last(name));
        }
    }

    /// Ends the input of a key behind what waits for it.
    fn end(&mut self, entry: u32) {
        let known = self.index.entry(entry);
        if known.ends || known.stage == Stage::Ending {
            return;
        }
        known.ends = true;
        self.ending += 1;
        if known.stage == Stage::Open {
            self.send_waiting(entry);
        }
    }

    /// Has keys that were used least recently end, for those that want their places.
    fn evict(&mut self) {
        let mut next = self.index.oldest();
        while self.ending < self.wanting
            && let Some(entry) = next
        {
            next = self.index.newer(entry);
            let known = self.index.entry(entry);
            let leaves = known.ends || known.stage == Stage::Ending;
            if !leaves && self.unopened.back() != Some(&entry) {
                self.counts.evicted += 1;
                self.end(entry);
            }
        }
    }

    /// With every key a lane is wanted, until there are as many as there may be.
    fn wanted_lanes(&self) -> usize {
        self.live().min(self.most_lanes)
    }

    /// Opens the key that has waited longest, if it can be now.
    fn open_next(&mut self) -> PyResult<bool> {
        if self.lanes.is_empty() {
            return Ok(false);
        }
        if self.limited && self.reserved == 0 || self.lanes.len() < self.wanted_lanes() {
            return Ok(false);
        }
        let Some(entry) = self.unopened.pop_front() else {
            return Ok(false);
        };
        self.reserved = self.reserved.saturating_sub(1);
        self.open(entry)?;
        Ok(true)
    }

    /// Forgets a key.
    fn forget(&mut self, entry: u32) -> super::index::Entry {
        let known = self.index.remove(entry);
        self.waiting -= known.waiting.len() as u64;
        known
    }
}

/// What is to be done about a key once the state is left.
enum After {
    Nothing,
    /// A place came back.
    Place,
}

impl Keys {
    fn now(&self) -> u32 {
        let since = ticks::to_duration(ticks::now().saturating_sub(self.began));
        since.as_millis() as u32
    }

    fn terms(&self, py: Python<'_>) -> PyResult<Terms> {
        Ok(self.state.with(py, |state| Terms {
            window: state.window,
            tells_all: state.timed,
        })?)
    }

    fn add(&self, py: Python<'_>, way: Way) -> PyResult<()> {
        way.agree(py, self.terms(py)?)?;
        self.state.with(py, |state| {
            state.opening = state.opening.saturating_sub(1);
            state.lanes.push(Lane::new(way));
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

    /// Calls `on_error` for a key whose function has raised, if one is next.
    fn tell_failure(&self, py: Python<'_>) -> PyResult<()> {
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
            self.state
                .with(py, |state| state.error = state.error.take().or(Some(raised)))?;
        }
        Ok(())
    }

    /// The same, or what to wait for; None at the end.
    pub(super) fn next(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        loop {
            if let Some(item) = self.taken(py)? {
                return Ok(Some(Step::Return(item)));
            }
            self.tell_failure(py)?;
            if self.stint.is_over() {
                return Ok(Some(Step::Yield(py.None())));
            }
            if self.state.with(py, |state| state.over)? {
                return Ok(None);
            }
            let mut progress = self.read(py)?;
            if !self.has_failed(py)? {
                progress |= self.fill(py)?;
                progress |= self.open_some(py)?;
                progress |= self.act(py)?;
                progress |= self.read(py)?;
            }
            let (there, failed, done) = self.state.with(py, |state| {
                state.counts.live = state.live() as u64;
                state.counts.pending = state.pending();
                self.counts.tell(py, state.counts);
                (
                    !state.out.is_empty(),
                    state.error.is_some(),
                    state.source.is_none() && state.live() == 0,
                )
            })?;
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

    fn has_failed(&self, py: Python<'_>) -> PyResult<bool> {
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
    fn finish(&self, py: Python<'_>, failed: bool) -> PyResult<Option<Step>> {
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

    /// Takes events from the source, as many as may be. Whether there was any.
    fn fill(&self, py: Python<'_>) -> PyResult<bool> {
        let mut took = false;
        let inline = |state: &mut State| {
            let lanes = state.lanes.first();
            lanes.is_some_and(|lane| matches!(lane.way, Way::Inline(_)))
        };
        let most = match self.state.with(py, inline)? {
            true => INLINE_BATCH,
            false => BATCH,
        };
        for _ in 0..most {
            let (source, held) = self.state.with(py, |state| {
                let room = state.pending() < state.max_pending;
                match state.held.take() {
                    Some(held) => (None, Some(held)),
                    None if room => (state.source.as_ref().map(|s| s.clone_ref(py)), None),
                    None => (None, None),
                }
            })?;
            let (event, key, hash) = match held {
                Some((event, key, hash)) => (event.into_bound(py), key.into_bound(py), hash),
                None => {
                    let Some(source) = source else { break };
                    match self.take_event(py, source.bind(py)) {
                        Ok(Some(found)) => found,
                        Ok(None) => break,
                        Err(error) => {
                            self.state.with(py, |state| state.error = Some(error))?;
                            return Ok(true);
                        }
                    }
                }
            };
            if !self.route(py, &event, &key, hash)? {
                self.state.with(py, |state| {
                    state.held = Some((event.unbind(), key.unbind(), hash));
                })?;
                break;
            }
            took = true;
            if self.state.with(py, |state| state.limited && state.wanting > state.ending)? {
                self.make_room(py)?;
            }
        }
        self.tell_ends(py)?;
        Ok(took)
    }

    #[allow(clippy::type_complexity)]
    #[inline]
    fn take_event<'py>(
        &self,
        py: Python<'py>,
        source: &Bound<'py, PyAny>,
    ) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyAny>, u64)>> {
        let Some(event) = next_of(source)? else {
            let live = self.state.with(py, |state| state.live)?;
            if !live || source.getattr(intern!(py, "exhausted"))?.is_truthy()? {
                self.state.with(py, |state| {
                    state.told_end = Some(0);
                    state.source.take()
                })?;
            }
            return Ok(None);
        };
        let (key, hash) = self.key_of.key(&event)?;
        Ok(Some((event, key, hash)))
    }

    /// Gives an event to its key. False: not before something else has happened.
    #[inline]
    fn route(
        &self,
        py: Python<'_>,
        event: &Bound<'_, PyAny>,
        key: &Bound<'_, PyAny>,
        hash: u64,
    ) -> PyResult<bool> {
        let ordered = self.state.with(py, |state| state.ordered)?;
        let now = if ordered { self.now() } else { 0 };
        let routed = self.state.with(py, |state| -> PyResult<Option<bool>> {
            let now = now + state.aged;
            let entry = match state.index.find(key, hash)? {
                Some(entry) => entry,
                None => {
                    let entry = state.index.insert(key.clone().unbind(), hash);
                    state.unopened.push_back(entry);
                    state.wanting += 1;
                    entry
                }
            };
            let window = state.window;
            let known = state.index.entry(entry);
            match known.stage {
                Stage::Finished => match state.after_end {
                    AfterEnd::Ignore => {
                        state.counts.dropped += 1;
                        return Ok(Some(true));
                    }
                    AfterEnd::Raise => return Ok(None),
                    AfterEnd::Restart => {
                        drop(state.index.remove(entry));
                        let entry = state.index.insert(key.clone().unbind(), hash);
                        state.unopened.push_back(entry);
                        state.wanting += 1;
                        let known = state.index.entry(entry);
                        known.waiting.push(event.clone().unbind(), 0);
                        state.waiting += 1;
                    }
                },
                _ if known.ends => return Ok(Some(false)),
                Stage::Open if known.in_flight < window && known.waiting.is_empty() => {
                    known.in_flight += 1;
                    let name = Name {
                        id: known.id,
                        generation: known.generation,
                    };
                    let lane = &mut state.lanes[known.lane as usize];
                    lane.sent += 1;
                    let act = Act::Event(name, event.clone().unbind());
                    lane.outgoing.push_back(act);
                }
                stage => {
                    if stage == Stage::Ending && known.waiting.is_empty() {
                        state.wanting += 1;
                    }
                    known.waiting.push(event.clone().unbind(), 0);
                    state.waiting += 1;
                }
            }
            state.counts.events += 1;
            if state.ordered {
                state.index.touch(entry, now);
            }
            Ok(Some(true))
        })??;
        match routed {
            Some(routed) => Ok(routed),
            None => {
                let what = format!(
                    "an event came for key {}, whose function has returned; see `finished_keys`",
                    key.repr()?
                );
                self.state
                    .with(py, |state| state.error = Some(errors::closed(what)))?;
                Ok(true)
            }
        }
    }

    /// Once the source is exhausted, keys are told so, some at a time.
    fn tell_ends(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            let Some(from) = state.told_end else {
                return;
            };
            let outgoing: usize = state.lanes.iter().map(|lane| lane.outgoing.len()).sum();
            if state.held.is_some() || outgoing > ENDS {
                return;
            }
            let some: Vec<u32> = state.index.from(from).take(ENDS).collect();
            state.told_end = some.last().map(|last| last + 1);
            some.into_iter().for_each(|entry| state.end(entry));
        })?)
    }

    /// Opens keys that wait for it, and asks the host for what they lack.
    fn open_some(&self, py: Python<'_>) -> PyResult<bool> {
        let lacks = self.state.with(py, |state| {
            let has = state.lanes.len() + state.opening;
            let lacks = !state.unopened.is_empty() && has < state.wanted_lanes();
            if lacks {
                state.opening += 1;
                return state.host(py);
            }
            None
        })?;
        if let Some(host) = lacks {
            host.call_method0(py, intern!(py, "open_lane"))?;
        }
        if self.state.with(py, |state| state.limited)? {
            self.make_room(py)?;
        }
        let mut opened = false;
        while self.state.with(py, State::open_next)?? {
            opened = true;
        }
        Ok(opened)
    }

    /// Takes places for keys that want one. Where there is none, one of our own keys ends, or somebody
    /// else's place is waited for.
    fn make_room(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let host = self.state.with(py, |state| {
                let wants = state.reserved < state.unopened.len();
                wants.then(|| state.host(py)).flatten()
            })?;
            let Some(host) = host else { break };
            let place = host.call_method0(py, intern!(py, "take_place"))?;
            if !place.is_truthy(py)? {
                break;
            }
            self.state.with(py, |state| {
                state.reserved += 1;
                state.wanting -= 1;
            })?;
        }
        let waits = self.state.with(py, |state| {
            if state.live() + state.reserved > state.unopened.len() {
                state.evict();
                return None;
            }
            let waits = state.wanting > 0 && !std::mem::replace(&mut state.in_line, true);
            waits.then(|| state.host(py)).flatten()
        })?;
        match waits {
            Some(host) => host.call_method0(py, intern!(py, "await_place")).map(drop),
            None => Ok(()),
        }
    }

    /// Does what was decided, as far as there is room. Whether anything was.
    fn act(&self, py: Python<'_>) -> PyResult<bool> {
        let mut progress = false;
        let lanes = self.state.with(py, |state| state.ways())?;
        for (number, way) in lanes {
            let (mut acts, room) = self.state.with(py, |state| {
                let lane = &mut state.lanes[number];
                let pending = lane.sent_bytes.saturating_sub(lane.handled_bytes);
                let room = state.max_bytes.saturating_sub(pending);
                (std::mem::take(&mut lane.outgoing), room)
            })?;
            if acts.is_empty() && !way.may_go_on(py)? {
                continue;
            }
            let done = way.act(py, &mut acts, room);
            self.state.with(py, |state| {
                let lane = &mut state.lanes[number];
                // Nothing was added meanwhile, unless Python code that ran has done so.
                acts.append(&mut lane.outgoing);
                lane.outgoing = acts;
                match done {
                    Ok(done) => {
                        lane.sent_bytes += done.bytes;
                        progress |= done.acts > 0;
                    }
                    Err(error) => {
                        state.error.get_or_insert(error);
                        progress = true;
                    }
                }
            })?;
        }
        Ok(progress)
    }

    /// Reads what lanes say. Whether there was anything.
    fn read(&self, py: Python<'_>) -> PyResult<bool> {
        let lanes = self.state.with(py, |state| state.ways())?;
        let mut progress = false;
        for (number, way) in lanes {
            let mut results = 0;
            while results < BATCH {
                match way.told(py) {
                    Ok(Told::Message(message)) => {
                        results += 1;
                        self.take_message(py, number, message)?;
                        if self.has_failed(py)? {
                            break;
                        }
                    }
                    Ok(Told::Nothing) => break,
                    Ok(Told::Over(error)) => {
                        self.lane_is_over(py, number, error)?;
                        progress = true;
                        break;
                    }
                    Err(error) => {
                        self.state
                            .with(py, |state| state.error = state.error.take().or(Some(error)))?;
                        return Ok(true);
                    }
                }
            }
            if results > 0 {
                progress = true;
                way.read(py)?;
            }
        }
        Ok(progress)
    }

    fn lane_is_over(&self, py: Python<'_>, number: usize, error: Option<PyErr>) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            state.lanes[number].over = true;
            if !state.closing {
                let error = error.unwrap_or_else(|| errors::closed("a lane has ended"));
                state.error.get_or_insert(error);
            }
        })?)
    }

    #[inline]
    fn take_message(&self, py: Python<'_>, number: usize, message: Message) -> PyResult<()> {
        match message {
            Message::Result(name, result) => self.state.with(py, |state| {
                let Some(entry) = state.lanes[number].ids.entry(name.id, name.generation) else {
                    return Err(unknown());
                };
                let known = state.index.entry(entry);
                let Some(key) = &known.key else {
                    return Err(unknown());
                };
                let item = PyTuple::new(py, [key.bind(py), result.bind(py)])?;
                state.out.push_back(Out::Item(item.into_any().unbind()));
                state.counts.results += 1;
                Ok(())
            })?,
            Message::Handled(handled) => Ok(self.state.with(py, |state| {
                let lane = &mut state.lanes[number];
                lane.handled = handled.events;
                lane.handled_bytes = handled.bytes;
                for (name, count) in handled.keys {
                    let ids = &state.lanes[number].ids;
                    if let Some(entry) = ids.entry(name.id, name.generation) {
                        let known = state.index.entry(entry);
                        known.in_flight = known.in_flight.saturating_sub(count);
                        if !known.waiting.is_empty() && known.stage == Stage::Open {
                            state.send_waiting(entry);
                        }
                    }
                }
            })?),
            Message::Ended(name, outcome) => {
                let after = self.ended(py, number, name, outcome)?;
                if let After::Place = after
                    && let Some(host) = self.state.with(py, |state| state.host(py))?
                {
                    host.call_method0(py, intern!(py, "give_place"))?;
                }
                Ok(())
            }
        }
    }

    /// A key has ended.
    fn ended(
        &self,
        py: Python<'_>,
        number: usize,
        name: Name,
        outcome: Result<(), PyErr>,
    ) -> PyResult<After> {
        let now = self.now();
        let (limited, gone, failed) = self.state.with(py, |state| {
            let ids = &mut state.lanes[number].ids;
            let Some(entry) = ids.entry(name.id, name.generation) else {
                return Err(unknown());
            };
            ids.give_back(name.id);
            state.counts.ended += 1;
            let known = state.index.entry(entry);
            let asked = known.ends || known.stage == Stage::Ending;
            if asked {
                state.ending -= 1;
            }
            let known = state.index.entry(entry);
            let key = known.key.as_ref().map(|key| key.clone_ref(py));
            let failed = outcome.err().map(|error| (key, error));
            let waits = !known.waiting.is_empty();
            let again = waits && (known.stage == Stage::Ending || failed.is_some());
            let restarts = waits && !asked && state.after_end == AfterEnd::Restart;
            let gone = if again || restarts {
                // What came since opens it anew.
                if !(known.stage == Stage::Ending) {
                    state.wanting += 1;
                }
                known.stage = Stage::Unopened;
                known.ends = false;
                state.unopened.push_back(entry);
                None
            } else if asked || failed.is_some() || state.after_end == AfterEnd::Restart {
                Some(state.forget(entry))
            } else {
                let known = state.index.entry(entry);
                let waiting = std::mem::take(&mut known.waiting);
                state.waiting -= waiting.len() as u64;
                state.counts.dropped += waiting.len() as u64;
                state.index.finish(entry, now);
                if state.index.finished() > state.most_finished
                    && let Some(oldest) = state.index.oldest_finished()
                {
                    Some(state.index.remove(oldest))
                } else {
                    None
                }
            };
            if state.told_end.is_none() && state.source.is_none() && !state.unopened.is_empty() {
                state.told_end = Some(0); // what opens anew is to be told as well
            }
            Ok((state.limited, gone, failed))
        })??;
        drop(gone);
        if let Some((key, error)) = failed {
            self.failed(py, key, error)?;
        }
        Ok(if limited { After::Place } else { After::Nothing })
    }

    /// The function of a key has raised.
    fn failed(&self, py: Python<'_>, key: Option<Py<PyAny>>, error: PyErr) -> PyResult<()> {
        let key = key.unwrap_or_else(|| py.None());
        let closing = self.state.with(py, |state| state.closing)?;
        if closing {
            return Ok(());
        }
        let call = self.state.with(py, |state| match &state.on_error {
            OnError::Raise => None,
            OnError::Drop => Some(false),
            OnError::Call(_) => Some(true),
        })?;
        let note = || -> PyResult<()> {
            let note = format!("in the stream of key {}", key.bind(py).repr()?);
            error
                .value(py)
                .call_method1(intern!(py, "add_note"), (note,))?;
            Ok(())
        };
        match call {
            None => {
                note()?;
                self.state
                    .with(py, |state| state.error = state.error.take().or(Some(error)))?;
            }
            Some(false) => {}
            Some(true) => {
                note()?;
                self.state
                    .with(py, |state| state.out.push_back(Out::Failed(key, error)))?;
            }
        }
        Ok(())
    }

    /// What to sleep on; None when something has come meanwhile.
    fn sleep(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
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

    /// The wait is given up.
    pub(super) fn stop(&self, py: Python<'_>) {
        self.group.wait().clear(py);
    }
}

fn unknown() -> PyErr {
    errors::corrupted("a worker speaks of a key that it was not given")
}

