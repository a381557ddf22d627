//! One way from the caller to a key table.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use velo_shm::ticks;

use super::index::Ids;
use super::outlet::Outlet;
use super::remote_lane::{self, RemoteLane};
use super::table::KeyTable;
use super::text_of;
use super::turn::Turn;
use crate::flow::Interest;
use crate::lane_frames::{CANCEL, EVENT, LAST, Name, OPEN, REQUEST, SAVE, TERMS, Terms};
use crate::process::client::channel::RingChannel;
use crate::process::client::link::ClientLink;
use crate::process::client::told::Told;
use crate::user::channel::Channel;
use crate::user::state::StreamCore;
use crate::wait::Group;

/// After how long a worker is shown what it was sent.
const SHOW_EVERY: Duration = Duration::from_micros(10);
/// So many runnable keys are stepped in a turn.
const STEPS: usize = 128;

/// What is to be done with a key.
pub enum Act {
    /// A key opens; the key itself, where its text is to be shown.
    Open(Name, Option<Py<PyAny>>),
    /// An event, and whether it is a request.
    Event(Name, Py<PyAny>, bool),
    Last(Name),
    /// The same as `Open`, of a key whose function has saved this in another worker.
    Restore(Name, Arc<[u8]>, Option<Py<PyAny>>),
    /// The same as `Event`, encoded.
    Encoded(Name, Py<PyBytes>, bool),
    /// A snapshot of the key's state is wanted.
    Save(Name),
    /// The key is not wanted any more.
    Cancel(Name),
}

/// How it gets there.
#[derive(Clone)]
pub enum Way {
    /// By a call.
    Inline(Arc<KeyTable>),
    /// By a stream.
    Ring(Arc<StreamCore>),
    /// By whoever carries frames to another machine.
    Remote(Arc<Py<RemoteLane>>),
    /// Not at all any more.
    Gone,
}

/// A lane as the caller has it.
pub struct Lane {
    pub way: Way,
    pub ids: Ids,
    /// What was decided and not done yet.
    pub outgoing: VecDeque<Act>,
    /// Events that the table has, or will have from `outgoing`; and those that it has handled.
    pub sent: u64,
    pub handled: u64,
    pub sent_bytes: u64,
    pub handled_bytes: u64,
    /// The worker has said something.
    pub heard: bool,
    /// It is asked for another lane in its place; and there is one, so that it gets no new keys.
    pub asked: bool,
    pub left: bool,
    /// It has ended.
    pub over: bool,
    /// Keys that were ended for others, and how many of those were shown.
    pub evicted: u32,
    pub shown: u32,
}

/// What doing acts came to.
#[derive(Default)]
pub struct Done {
    pub acts: usize,
    pub bytes: u64,
}

impl Lane {
    /// One on which nothing was done.
    pub fn new(way: Way) -> Self {
        Lane {
            way,
            ids: Ids::default(),
            outgoing: VecDeque::new(),
            sent: 0,
            handled: 0,
            sent_bytes: 0,
            handled_bytes: 0,
            heard: false,
            asked: false,
            left: false,
            over: false,
            evicted: 0,
            shown: 0,
        }
    }

    /// Its keys are gone from it. What it was is to be dropped once the state is left.
    #[must_use]
    pub fn lose(&mut self) -> Way {
        self.over = true;
        self.ids = Ids::default();
        self.outgoing = VecDeque::new();
        (self.sent, self.handled) = (0, 0);
        (self.sent_bytes, self.handled_bytes) = (0, 0);
        std::mem::replace(&mut self.way, Way::Gone)
    }

    /// Events that the table is not done with.
    pub fn pending(&self) -> u64 {
        self.sent.saturating_sub(self.handled)
    }
}

impl Way {
    /// The terms come first of all.
    pub fn agree(&self, py: Python<'_>, terms: Terms) -> PyResult<()> {
        match self {
            Way::Inline(table) => table.agree(py, terms),
            Way::Remote(lane) => lane.get().send_bytes(py, TERMS, &terms.bytes()),
            Way::Gone => Ok(()),
            Way::Ring(core) => match &core.channel {
                Channel::Ring(ring) => ring.send_bytes(py, TERMS, &terms.bytes()).map(drop),
                Channel::Inline(_) => Ok(()),
            },
        }
    }

    /// Does as many acts as there is room for, `room` bytes at most.
    pub fn act(&self, py: Python<'_>, acts: &mut VecDeque<Act>, room: u64) -> PyResult<Done> {
        match self {
            Way::Inline(table) => Self::act_inline(py, table, acts),
            Way::Gone => Ok(Done::default()),
            Way::Ring(core) => match &core.channel {
                Channel::Ring(ring) => Self::act_remotely(py, &(ring, &**core), acts, room),
                Channel::Inline(_) => Ok(Done::default()),
            },
            Way::Remote(lane) => Self::act_remotely(py, lane.get(), acts, room),
        }
    }

    fn act_inline(py: Python<'_>, table: &KeyTable, acts: &mut VecDeque<Act>) -> PyResult<Done> {
        if table.is_blocked(py)? {
            table.unblock(py)?;
        }
        let mut turn = Turn::of(py, table);
        let mut done = Done::default();
        if table.has_runnable(py)? {
            table.drive(&mut turn, STEPS)?;
        }
        while let Some(act) = acts.pop_front() {
            done.acts += 1;
            match act {
                Act::Open(name, _) => table.open(py, name, &[])?,
                Act::Restore(name, state, _) => table.open(py, name, &state)?,
                Act::Event(name, event, request) => {
                    if request {
                        table.note_request(py, name)?;
                    }
                    table.deliver(&mut turn, name, event, 0)?;
                }
                Act::Last(name) => table.last(&mut turn, name)?,
                Act::Cancel(name) => table.cancel(py, name)?,
                Act::Save(name) => table.save_soon(py, name)?,
                Act::Encoded(..) => {} // for other processes
            }
        }
        if table.has_runnable(py)? {
            table.drive(&mut turn, STEPS)?;
        }
        drop(turn);
        table.tell_handled(py, acts.is_empty())?;
        Ok(done)
    }

    fn act_remotely(
        py: Python<'_>,
        frames: &impl Frames,
        acts: &mut VecDeque<Act>,
        room: u64,
    ) -> PyResult<Done> {
        let mut done = Done::default();
        let (mut shown, every) = (ticks::now(), ticks::from_duration(SHOW_EVERY));
        let (mut events, mut opening) = (0, Vec::new());
        let outcome = loop {
            let Some(act) = acts.front() else {
                break Ok(());
            };
            let sent = match act {
                Act::Open(name, key) => {
                    opening.clear();
                    text_of::put(key.as_ref().map(|key| key.bind(py)), &mut opening);
                    frames.encoded(py, (OPEN, false), *name, &opening)
                }
                Act::Event(..) | Act::Encoded(..) if done.bytes >= room => break Ok(()),
                Act::Event(name, event, request) => {
                    let kind = if *request { REQUEST } else { EVENT };
                    let sent = frames.named(py, (kind, true), *name, Some(event.bind(py)));
                    if let Ok(Some(len)) = sent {
                        done.bytes += u64::from(len);
                        events += 1;
                    }
                    sent
                }
                Act::Encoded(name, event, request) => {
                    let kind = if *request { REQUEST } else { EVENT };
                    let bytes = event.as_bytes(py);
                    let sent = frames.encoded(py, (kind, true), *name, bytes);
                    if let Ok(Some(len)) = sent {
                        done.bytes += u64::from(len);
                        events += 1;
                    }
                    sent
                }
                Act::Last(name) => frames.named(py, (LAST, false), *name, None),
                Act::Restore(name, state, key) => {
                    opening.clear();
                    text_of::put(key.as_ref().map(|key| key.bind(py)), &mut opening);
                    opening.extend_from_slice(state);
                    frames.encoded(py, (OPEN, false), *name, &opening)
                }
                Act::Save(name) => frames.named(py, (SAVE, false), *name, None),
                Act::Cancel(name) => frames.named(py, (CANCEL, false), *name, None),
            };
            match sent {
                Ok(Some(_)) => {
                    done.acts += 1;
                    drop(acts.pop_front());
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            let now = ticks::now();
            if now.saturating_sub(shown) > every {
                shown = now;
                frames.flush(py)?;
            }
        };
        if events > 0 {
            frames.count(py, events)?;
        }
        frames.flush(py)?;
        outcome.map(|()| done)
    }

    /// The next thing that the table says. `hashes` asks for the hash of each result.
    #[inline]
    pub fn told(&self, py: Python<'_>, hashes: bool) -> PyResult<Told> {
        match self {
            Way::Inline(table) => match &table.outlet {
                Outlet::Inline(outlet) => Ok(outlet.pop(py)?.map_or(Told::Nothing, Told::Message)),
                Outlet::Ring(_) => Ok(Told::Nothing),
            },
            Way::Ring(core) => match &core.channel {
                Channel::Ring(ring) => {
                    let told = ring.next_message(py, hashes)?;
                    if matches!(told, Told::Over(..)) {
                        core.over(py, || "the lane has ended".to_owned())?;
                    }
                    Ok(told)
                }
                Channel::Inline(_) => Ok(Told::Nothing),
            },
            Way::Remote(lane) => lane.get().told(py, hashes),
            Way::Gone => Ok(Told::Nothing),
        }
    }

    /// The lane of a worker.
    fn ring(&self) -> Option<&RingChannel> {
        match self {
            Way::Ring(core) => match &core.channel {
                Channel::Ring(ring) => Some(ring),
                Channel::Inline(_) => None,
            },
            Way::Inline(_) | Way::Remote(_) | Way::Gone => None,
        }
    }

    /// Whether it is to leave its worker, if it can.
    pub fn is_leaving(&self) -> bool {
        self.ring().is_some_and(RingChannel::is_leaving)
    }

    /// Whether it is on this link.
    pub fn is_on(&self, py: Python<'_>, link: &Arc<ClientLink>) -> PyResult<bool> {
        self.ring().map_or(Ok(false), |ring| ring.is_on(py, link))
    }

    /// It has no better worker to go to.
    pub fn stays(&self) {
        if let Some(ring) = self.ring() {
            ring.stays();
        }
    }

    /// What was read is done with.
    pub fn read(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Way::Inline(_) | Way::Gone => Ok(()),
            Way::Remote(lane) => lane.get().read(py),
            Way::Ring(core) => core.channel.flush_results(py),
        }
    }

    /// Whether the table could go on, if it were let.
    pub fn may_go_on(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            Way::Inline(table) => Ok(table.is_blocked(py)? || table.has_runnable(py)?),
            Way::Ring(_) | Way::Remote(_) | Way::Gone => Ok(false),
        }
    }

    /// Has `group` told of what comes; false when something is there already.
    pub fn watch(
        &self,
        py: Python<'_>,
        group: &Arc<Group>,
        (stuck, bulk): (bool, bool),
    ) -> PyResult<bool> {
        let core = match self {
            Way::Ring(core) => core,
            Way::Remote(lane) => return lane.get().watch(py, group, stuck),
            Way::Inline(_) | Way::Gone => return Ok(true), // its outlet tells
        };
        let want = Interest {
            space: stuck,
            throughput: bulk,
            ..Interest::RESULTS
        };
        core.waits.recv.join(py, group.clone(), py.None())?;
        let sleeps = core.channel.may_sleep(py, want)?;
        if !sleeps {
            core.waits.recv.clear(py);
        }
        Ok(sleeps)
    }

    /// Looks for what comes, for a short while.
    pub fn spin(&self, py: Python<'_>, stuck: bool) -> PyResult<()> {
        match self {
            Way::Inline(_) | Way::Remote(_) | Way::Gone => Ok(()),
            Way::Ring(core) => core.spin(
                py,
                Interest {
                    space: stuck,
                    throughput: true,
                    ..Interest::RESULTS
                },
            ),
        }
    }

    /// No more keys come.
    pub fn end(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Way::Inline(_) | Way::Gone => Ok(()),
            Way::Remote(lane) => lane.get().send_bytes(py, remote_lane::END, &[]),
            Way::Ring(core) => core.try_end(py, "all keys have ended").map(drop),
        }
    }

    /// Cancels every key.
    pub fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Way::Inline(table) => table.cancel_all(py),
            Way::Remote(lane) => lane.get().send_bytes(py, remote_lane::CANCEL, &[]),
            Way::Gone => Ok(()),
            Way::Ring(core) => core.abandon(py),
        }
    }

    /// Whether nothing of it runs any more. Steps what can be stepped in this thread.
    pub fn is_over(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            Way::Inline(table) => {
                if table.is_blocked(py)? {
                    table.unblock(py)?;
                }
                let mut turn = Turn::of(py, table);
                table.drive(&mut turn, STEPS)?;
                drop(turn);
                Ok(table.live(py)? == 0)
            }
            Way::Ring(core) => Ok(core.state.with(py, |state| state.is_over())?),
            Way::Remote(lane) => lane.get().over(py),
            Way::Gone => Ok(true),
        }
    }

    /// Nobody will have use of it.
    pub fn clear(&self, py: Python<'_>) {
        if let Way::Inline(table) = self {
            table.clear(py);
        }
    }
}

/// Takes frames to a table in another process.
trait Frames {
    /// Sends a value of a key: how many bytes that took, or None when there is no room now.
    fn named(
        &self,
        py: Python<'_>,
        kind: (u8, bool),
        name: Name,
        value: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<u32>>;

    /// The same with what is encoded.
    fn encoded(
        &self,
        py: Python<'_>,
        kind: (u8, bool),
        name: Name,
        bytes: &[u8],
    ) -> PyResult<Option<u32>>;

    /// Shows the other side what was sent.
    fn flush(&self, py: Python<'_>) -> PyResult<()>;

    /// Counts events that were sent.
    fn count(&self, py: Python<'_>, events: u64) -> PyResult<()>;
}

impl Frames for (&RingChannel, &StreamCore) {
    #[inline]
    fn named(
        &self,
        py: Python<'_>,
        kind: (u8, bool),
        name: Name,
        value: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<u32>> {
        self.0.send_named(py, kind, name, value)
    }

    #[inline]
    fn encoded(
        &self,
        py: Python<'_>,
        kind: (u8, bool),
        name: Name,
        bytes: &[u8],
    ) -> PyResult<Option<u32>> {
        self.0.send_encoded(py, kind, name, bytes)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.0.flush_events(py)
    }

    fn count(&self, py: Python<'_>, events: u64) -> PyResult<()> {
        self.1.count(py, events)
    }
}

impl Frames for RemoteLane {
    #[inline]
    fn named(
        &self,
        py: Python<'_>,
        (kind, _): (u8, bool),
        name: Name,
        value: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<u32>> {
        self.send_named(py, kind, name, value)
    }

    #[inline]
    fn encoded(
        &self,
        py: Python<'_>,
        (kind, _): (u8, bool),
        name: Name,
        bytes: &[u8],
    ) -> PyResult<Option<u32>> {
        self.send_encoded(py, kind, name, bytes)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        Self::flush(self, py)
    }

    fn count(&self, _py: Python<'_>, _events: u64) -> PyResult<()> {
        Ok(())
    }
}
