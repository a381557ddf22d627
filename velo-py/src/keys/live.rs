//! Keys whose events come from tasks: `async with fn.keys() as keys`.
//!
//! There is no iteration that would see to the lanes. A task that sends does so itself, on its own
//! stack: in inline mode its event is handled, and its request answered, before it has waited for
//! anything. For the rest there is a [`Driver`], which the event loop calls when a lane has something
//! to say.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::intern;
use pyo3::prelude::*;
use velo_shm::ticks;

use super::index::Stage;
use super::keyed::Keys;
use super::lane::Way;
use super::requests::{Behind, LiveForm, Request, Ticket};
use super::routing::{Out, Routed, State};
use super::sending::has_returned;
use crate::errors;

/// For how many microseconds the lanes are seen to before other tasks have their turn.
const TURN_US: u64 = 500;

/// What seeing to the lanes came to.
#[derive(PartialEq)]
enum Rest {
    /// They have nothing more to say.
    Quiet,
    /// There is more to do, after the turn of others.
    More,
    /// Nothing will come any more.
    Over,
}

/// What the event loop calls when a lane has something to say.
#[pyclass(frozen)]
pub struct Driver {
    keys: Py<Keys>,
}

#[pymethods]
impl Driver {
    #[pyo3(signature = (_woken = None))]
    fn __call__(slf: &Bound<'_, Self>, _woken: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let keys = slf.get().keys.bind(slf.py());
        let outcome = Keys::go_on(keys, slf);
        if let Err(error) = outcome {
            keys.get().break_down(slf.py(), error)?;
        }
        Ok(())
    }
}

#[pymethods]
impl Keys {
    /// Events come from tasks of the running loop from now on. `name` is the function's; `refuses`:
    /// `send` raises instead of waiting for room.
    fn begin_live(
        slf: &Bound<'_, Self>,
        event_loop: Py<PyAny>,
        name: String,
        inline: bool,
        refuses: bool,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let form = LiveForm::new(event_loop, name, (inline, refuses));
        this.state
            .with(py, |state| state.live_form = Some(Box::new(form)))?;
        let driver = Bound::new(
            py,
            Driver {
                keys: slf.clone().unbind(),
            },
        )?;
        Self::go_on(slf, &driver)
    }

    /// Takes no more events, for this reason. With `drops`, results that no task receives are dropped
    /// where they are too many.
    pub(super) fn close_input(&self, py: Python<'_>, why: String, drops: bool) -> PyResult<()> {
        let line = self.state.with(py, |state| {
            if state.source.take().is_some() {
                state.told_end = Some(0);
            }
            let form = state.live_form.as_mut()?;
            form.closed.get_or_insert(why);
            form.drops |= drops;
            Some(std::mem::take(&mut form.line))
        })?;
        for ticket in line.into_iter().flatten() {
            ticket.wake(py);
        }
        self.nudge(py);
        Ok(())
    }

    /// All is closed: a task that still waits for something waits in vain.
    fn stop_live(&self, py: Python<'_>) -> PyResult<()> {
        let why = self.state.with(py, |state| {
            let form = state.live_form.as_mut()?;
            form.finished = true;
            let closed = format!("the keys of `{}` are closed", form.name);
            Some(form.closed.get_or_insert(closed).clone())
        })?;
        if let Some(why) = why {
            self.refuse_all(py, &errors::closed(why))?;
        }
        self.wake_all(py)
    }

    /// What to wait on until all keys have ended; None if they have.
    fn wait_until_over(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let future = self.state.with(py, |state| {
            let over = state.over;
            match state.live_form.as_mut() {
                Some(form) if !form.finished && !over => {
                    let event_loop = form.event_loop.clone_ref(py);
                    form.closer.start(event_loop.bind(py)).map(Some)
                }
                _ => Ok(None),
            }
        })??;
        if let Some(future) = &future {
            future.setattr(py, intern!(py, "_asyncio_future_blocking"), false)?;
        }
        Ok(future)
    }

    /// What everything failed with, if no task was told yet.
    pub(super) fn untold_error(&self, py: Python<'_>) -> PyResult<Option<PyErr>> {
        Ok(self.state.with(py, |state| {
            let form = state.live_form.as_mut()?;
            let told = std::mem::replace(&mut form.told, true);
            let error = state.error.as_ref().filter(|_| !told)?;
            Some(error.clone_ref(py))
        })?)
    }

    /// The counts of `KeysMetrics`, in its order.
    fn live_figures(&self, py: Python<'_>) -> PyResult<[u64; 9]> {
        Ok(self.state.with(py, |state| {
            let held = state.live_form.as_ref().map_or(0, |form| form.held);
            let counts = state.counts;
            [
                state.live() as u64,
                counts.opened,
                counts.ended,
                counts.evicted,
                counts.events,
                counts.results,
                if state.live() == 0 {
                    0
                } else {
                    state.pending()
                } + held,
                state.out.len() as u64,
                counts.dropped,
            ]
        })?)
    }
}

impl State {
    /// How much of `max_pending` is taken.
    fn taken(&self) -> u64 {
        let form = self.live_form.as_ref();
        let more = form.map_or(0, |form| form.held + form.granted);
        self.pending() + more + self.out.len() as u64
    }

    /// So many results are not received that lanes are not read.
    fn is_paused(&self) -> bool {
        let drops = self.live_form.as_ref().is_some_and(|form| form.drops);
        !drops && self.out.len() as u64 >= self.max_pending
    }
}

impl Keys {
    /// Refuses use from another thread, loop or process.
    pub(super) fn check_owner(&self, py: Python<'_>) -> PyResult<()> {
        self.state.with(py, |state| match &state.live_form {
            Some(form) => form.check_owner(py),
            None => Err(errors::velo("these keys were never opened")),
        })?
    }

    /// Refuses to send where nothing can be sent any more.
    pub(super) fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        let why = self.state.with(py, |state| {
            let form = state.live_form.as_ref()?;
            match &state.error {
                Some(error) => Some(all_failed(py, &form.name, error)),
                None => form.closed.as_ref().map(|why| errors::closed(why.clone())),
            }
        })?;
        why.map_or(Ok(()), Err)
    }

    /// Whether an operation lets other tasks run before it begins: the turn of this task is over, or an
    /// earlier operation does so, which goes on before it.
    #[inline]
    pub(super) fn stands_back(&self) -> bool {
        let stands = self.standing_back.load(Relaxed) > 0 || self.stint.is_over();
        if stands {
            self.standing_back.fetch_add(1, Relaxed);
        }
        stands
    }

    /// An operation that has stood back begins, or is given up.
    pub(super) fn goes_on(&self) {
        self.standing_back.fetch_sub(1, Relaxed);
    }

    /// Whether there is room for an event now, and no task before it that is in line or was given room.
    pub(super) fn has_room(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |state| {
            let form = state.live_form.as_ref();
            let first = form.is_some_and(|form| form.line.is_empty() && form.granted == 0);
            first && state.taken() < state.max_pending
        })?)
    }

    /// Puts a task in line for room.
    pub(super) fn stand_in_line(&self, py: Python<'_>) -> PyResult<Arc<Ticket>> {
        let ticket = Arc::<Ticket>::default();
        self.state.with(py, |state| {
            if let Some(form) = &mut state.live_form {
                form.line.push_back(ticket.clone());
            }
        })?;
        Ok(ticket)
    }

    /// A task takes the room that it was given, or gives it back.
    pub(super) fn take_grant(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            if let Some(form) = &mut state.live_form {
                form.granted = form.granted.saturating_sub(1);
            }
        })?)
    }

    /// Gives room to tasks in line.
    pub(super) fn give_room(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let next = self.state.with(py, |state| {
                let room = state.taken() < state.max_pending;
                let form = state.live_form.as_mut().filter(|_| room)?;
                let next = form.line.pop_front()?;
                form.granted += 1;
                Some(next)
            })?;
            let Some(ticket) = next else { return Ok(()) };
            if !ticket.grant(py)? {
                self.take_grant(py)?;
            }
        }
    }

    /// Gives an event to its key; the results of a request go to it.
    pub(super) fn submit(
        &self,
        py: Python<'_>,
        event: &Bound<'_, PyAny>,
        (key, hash): (&Bound<'_, PyAny>, u64),
        request: Option<Arc<Request>>,
    ) -> PyResult<()> {
        self.state.with(py, |state| {
            if let Some(form) = &mut state.live_form {
                form.sending = request.is_none().then(|| event.clone().unbind());
            }
        })?;
        match self.route(py, event, key, hash, request.is_some())? {
            Routed::Sent(entry) => {
                if let Some(request) = request {
                    self.state.with(py, |state| {
                        if let Some(form) = &mut state.live_form {
                            form.requests.entry(entry).or_default().push_back(request);
                        }
                    })?;
                }
                Ok(())
            }
            Routed::Held(entry) => Ok(self.state.with(py, |state| {
                if let Some(form) = &mut state.live_form {
                    let behind = form.behind.entry(entry).or_default();
                    behind.push_back(Behind::Event(event.clone().unbind(), request));
                    form.held += 1;
                }
            })?),
            Routed::Dropped => request.map_or(Ok(()), |request| request.complete(py, Ok(()))),
            Routed::Finished => Err(has_returned(key)?),
        }
    }

    /// Ends the input of a key, if there is one.
    pub(super) fn end_key(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<()> {
        let hash = super::index::hash_of(key)?;
        self.state.with(py, |state| -> PyResult<()> {
            let Some(entry) = state.index.find(key, hash)? else {
                return Ok(());
            };
            let form = state.live_form.as_mut();
            match form.and_then(|form| form.behind.get_mut(&entry)) {
                Some(behind) if matches!(behind.back(), Some(Behind::End)) => {}
                Some(behind) => behind.push_back(Behind::End),
                None if state.index.entry(entry).stage == Stage::Finished => {}
                None => state.end(py, entry),
            }
            Ok(())
        })?
    }

    /// Sees to the lanes on behalf of a task that has sent something, or wants a result.
    pub(super) fn see_to(&self, py: Python<'_>, reads: bool) -> PyResult<()> {
        let inline = |state: &mut State| {
            let first = state.lanes.first();
            first.is_some_and(|lane| matches!(lane.way, Way::Inline(_)))
        };
        let reads = reads || self.state.with(py, inline)?;
        let rest = match self.drive(py, reads) {
            Ok(rest) => rest,
            Err(error) => {
                self.break_down(py, error)?;
                Rest::Over
            }
        };
        let stuck = |state: &mut State| {
            let stuck = state.lanes.iter().any(|lane| !lane.outgoing.is_empty());
            stuck || !state.unopened.is_empty()
        };
        if rest == Rest::More || self.state.with(py, stuck)? {
            self.nudge(py); // the driver goes on
        }
        Ok(())
    }

    /// A task takes a result: the next one, if there is one.
    pub(super) fn take_result(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let taken = self.state.with(py, |state| {
            let paused = state.is_paused();
            let item = match state.out.pop_front()? {
                Out::Item(item) => item,
                Out::Failed(..) | Out::Held(_) | Out::Mark(..) => return None, // never in the live form
            };
            let form = state.live_form.as_mut()?;
            form.taken += 1;
            let waits = !form.line.is_empty();
            Some((item, waits, paused && !state.is_paused()))
        })?;
        let Some((item, waits, resumes)) = taken else {
            return Ok(None);
        };
        if waits {
            self.give_room(py)?;
        }
        if resumes {
            self.nudge(py);
        }
        Ok(Some(item))
    }

    /// What the task that iterates sleeps on; None at the end.
    pub(super) fn wait_for_result(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.state.with(py, |state| {
            let over = state.over;
            match state.live_form.as_mut() {
                Some(form) if !form.finished && !over => {
                    let event_loop = form.event_loop.clone_ref(py);
                    form.reader.start(event_loop.bind(py)).map(Some)
                }
                _ => Ok(None),
            }
        })?
    }

    /// The task that iterates waits no more.
    pub(super) fn stop_reading(&self, py: Python<'_>) -> PyResult<()> {
        let reader = self.reader(py)?;
        drop(reader);
        Ok(())
    }

    /// The function's name, if a task is not to wait for room.
    pub(super) fn refuses_to_wait(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.state.with(py, |state| {
            let form = state.live_form.as_ref()?;
            form.refuses.then(|| form.name.clone())
        })?)
    }

    fn drive(&self, py: Python<'_>, reads: bool) -> PyResult<Rest> {
        let begins = self.state.with(py, |state| {
            let (over, closing) = (state.over, state.closing);
            let form = state.live_form.as_mut()?;
            if over || closing || form.finished {
                return Some(Rest::Over);
            }
            // A function that sends, in its caller's own step: the caller goes on with it.
            std::mem::replace(&mut form.driving, true).then_some(Rest::More)
        })?;
        if let Some(rest) = begins {
            return Ok(rest);
        }
        let rest = self.drive_lanes(py, reads);
        self.state.with(py, |state| {
            if let Some(form) = &mut state.live_form {
                form.driving = false;
            }
            (state.counts.live, state.counts.pending) = (state.live() as u64, state.pending());
            let taken = state.counts.events.saturating_sub(state.counts.pending);
            state.counts.taken = state.counts.taken.max(taken);
        })?;
        self.show(py)?;
        let rest = rest?;
        self.give_room(py)?;
        let (there, failed, done) = self.state.with(py, |state| {
            let ended = state.source.is_none() && state.live() == 0;
            let held = state.live_form.as_ref().is_some_and(|form| form.held > 0);
            (!state.out.is_empty(), state.error.is_some(), ended && !held)
        })?;
        if there && let Some(reader) = self.reader(py)? {
            reader.wake(py);
        }
        if failed || done {
            self.end_all_lanes(py, failed)?;
            return Ok(Rest::Over);
        }
        Ok(rest)
    }

    fn drive_lanes(&self, py: Python<'_>, reads: bool) -> PyResult<Rest> {
        let began = ticks::now();
        let turn = ticks::from_duration(std::time::Duration::from_micros(TURN_US));
        loop {
            let mut progress = false;
            if reads {
                progress |= self.read_unless_paused(py)?;
            }
            if self.has_failed(py)? {
                return Ok(Rest::Quiet);
            }
            self.tell_ends(py)?;
            self.leave_workers(py)?;
            progress |= self.open_some(py)?;
            progress |= self.fail_full(py)?;
            progress |= self.act(py)?;
            if reads {
                progress |= self.read_unless_paused(py)?;
            }
            if !progress || self.has_failed(py)? {
                return Ok(Rest::Quiet);
            }
            if ticks::now().saturating_sub(began) > turn {
                return Ok(Rest::More);
            }
        }
    }

    fn read_unless_paused(&self, py: Python<'_>) -> PyResult<bool> {
        if self.state.with(py, |state| state.is_paused())? {
            return Ok(false);
        }
        let progress = self.read(py)?;
        let dropped = self.state.with(py, |state| {
            let drops = state.live_form.as_ref().is_some_and(|form| form.drops);
            let most = state.max_pending as usize;
            let many = state.out.len().saturating_sub(most);
            let many = if drops { many } else { 0 };
            state.out.drain(..many).collect::<Vec<_>>()
        })?;
        drop(dropped);
        Ok(progress)
    }

    /// The driver's turn.
    fn go_on(slf: &Bound<'_, Self>, driver: &Bound<'_, Driver>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.group.take(py)?;
        match this.drive(py, true)? {
            Rest::Over => return Ok(()),
            Rest::More => {}
            Rest::Quiet => {
                if this.rest(py, driver)? {
                    return Ok(());
                }
            }
        }
        let event_loop = this.event_loop(py)?;
        event_loop.call_method1(py, intern!(py, "call_soon"), (driver,))?;
        Ok(())
    }

    /// Has the driver called when there is something to do. False: there is.
    fn rest(&self, py: Python<'_>, driver: &Bound<'_, Driver>) -> PyResult<bool> {
        if !self.group.is_empty(py)? {
            return Ok(false);
        }
        let event_loop = self.event_loop(py)?;
        let future = self.group.wait().start(event_loop.bind(py))?;
        future.setattr(py, intern!(py, "_asyncio_future_blocking"), false)?;
        future.call_method1(py, intern!(py, "add_done_callback"), (driver,))?;
        let (paused, lanes) = self.state.with(py, |state| {
            let lanes = state.lanes.iter().filter(|lane| !lane.over);
            let lanes = lanes.map(|lane| (lane.way.clone(), (!lane.outgoing.is_empty(), false)));
            (state.is_paused(), lanes.collect::<Vec<_>>())
        })?;
        for (way, want) in lanes {
            if !paused && (way.may_go_on(py)? || !way.watch(py, &self.group, want)?) {
                self.group.wait().wake(py);
                break;
            }
        }
        Ok(true)
    }

    pub(super) fn event_loop(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let found = self.state.with(py, |state| {
            let form = state.live_form.as_ref()?;
            Some(form.event_loop.clone_ref(py))
        })?;
        found.ok_or_else(|| errors::velo("these keys were never opened"))
    }

    /// Moving events has failed.
    fn break_down(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        self.state.with(py, |state| {
            state.error.get_or_insert(error);
        })?;
        self.end_all_lanes(py, true)
    }

    /// All keys have ended, or are to be cancelled because of a failure.
    fn end_all_lanes(&self, py: Python<'_>, failed: bool) -> PyResult<()> {
        let (first, host, error, name) = self.state.with(py, |state| {
            let error = state.error.as_ref().map(|error| error.clone_ref(py));
            let host = state.host(py);
            let form = state.live_form.as_mut();
            let name = form
                .as_ref()
                .map_or(String::new(), |form| form.name.clone());
            let first = form.is_some_and(|form| !std::mem::replace(&mut form.finished, true));
            (first, host, error, name)
        })?;
        if !first {
            return Ok(());
        }
        let reason = match &error {
            Some(error) => all_failed(py, &name, error),
            None => errors::closed(format!("all keys of `{name}` have ended")),
        };
        self.refuse_all(py, &reason)?;
        if let Some(host) = host {
            host.call_method1(py, intern!(py, "closes"), (failed,))?;
        }
        self.wake_all(py)
    }

    /// Has the tasks look again that wait for a result or for the end.
    pub(super) fn wake_all(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(reader) = self.reader(py)? {
            reader.wake(py);
        }
        let closer = self.state.with(py, |state| {
            let form = state.live_form.as_mut()?;
            Some(std::mem::take(&mut form.closer))
        })?;
        if let Some(closer) = closer {
            closer.wake(py);
        }
        Ok(())
    }

    fn reader(&self, py: Python<'_>) -> PyResult<Option<crate::wait::Wait>> {
        Ok(self.state.with(py, |state| {
            let form = state.live_form.as_mut()?;
            Some(std::mem::take(&mut form.reader))
        })?)
    }
}

/// The error of what is tried after everything has failed.
fn all_failed(py: Python<'_>, name: &str, error: &PyErr) -> PyErr {
    let closed = errors::closed(format!("the keys of `{name}` were cancelled: {error}"));
    closed.set_cause(py, Some(error.clone_ref(py)));
    closed
}
