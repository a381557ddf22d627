//! The answers about a lane for `velo top` and `inspect`: the number of keys, the slow ones, and the
//! place where the function of one key waits.
//!
//! No event costs anything here. A key that opens leaves its text; a key that begins to await a future
//! leaves the time; and a step is noted if it took longer than all steps before it. Everything else is
//! computed for an answer.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::ticks;

use super::slot::{AT_WORK, LIVE, NOTED, STARTED, SUSPENDED, WAITS};
use super::table::{Inner, KeyTable};
use super::watched::{SHORT, Slow, Suspended};
use crate::key_text::{KeyText, quoted, shorten};
use crate::lane_frames::Name;

/// The most slow keys in an answer.
const SLOWEST: usize = 5;
/// The most keys with a wait that are considered for them.
const MOST_LOOKED_AT: usize = 10_000;
/// The most waits that are kept before those of running keys are dropped.
const FEW: usize = 1024;
/// The window of the slowest step: it is the slowest of this window and of the one before.
const WINDOW: Duration = Duration::from_secs(10);
/// The most keys of one text in an answer.
const MOST_FOUND: usize = 16;

/// Slow keys: the text of each, the seconds, and whether it awaits a future.
pub(super) type SlowKeys = Vec<(String, f64, bool)>;

impl Suspended {
    /// Whether the key is still at the same event.
    fn holds(&self, inner: &Inner) -> bool {
        let slot = &inner.slots[self.name.id as usize];
        slot.generation == self.name.generation
            && slot.has(LIVE)
            && slot.has(AT_WORK)
            && slot.taken == self.taken
    }
}

impl KeyTable {
    /// A key awaits a future other than an event.
    pub(super) fn suspends(&self, py: Python<'_>, id: u32) -> PyResult<()> {
        let news = self.inner.with(py, |inner| {
            let name = inner.name(id);
            let slot = inner.at(id);
            slot.set(SUSPENDED, true);
            let first = slot.has(AT_WORK) && !slot.has(NOTED);
            slot.set(NOTED, true);
            first.then_some((name, slot.taken))
        })?;
        if let Some((name, taken)) = news
            && self.outlet.is_watched()
        {
            let since = ticks::now();
            let many = self.watching.seen.with(py, |seen| {
                seen.suspended.push_back(Suspended { name, taken, since });
                seen.suspended.len() > seen.many.max(FEW)
            })?;
            if many {
                self.forget_those_that_go_on(py)?;
            }
        }
        Ok(())
    }

    #[cold]
    fn forget_those_that_go_on(&self, py: Python<'_>) -> PyResult<()> {
        self.watching.seen.with(py, |seen| {
            self.inner.with(py, |inner| {
                seen.suspended.retain(|key| key.holds(inner));
            })?;
            seen.many = 2 * seen.suspended.len();
            Ok(())
        })?
    }

    /// Notes the duration of a step, in ticks.
    #[inline]
    pub(super) fn note_step(&self, py: Python<'_>, id: u32, took: u64) {
        if took > self.watching.longest.load(Relaxed) {
            self.note_long_step(py, id, took);
        }
    }

    #[cold]
    fn note_long_step(&self, py: Python<'_>, id: u32, took: u64) {
        self.watching.longest.store(took, Relaxed);
        let name = self.inner.with(py, |inner| inner.name(id));
        let _ = self.watching.seen.with(py, |seen| {
            let when = ticks::now();
            seen.slowest[0] = name.ok().map(|name| Slow { name, took, when });
        });
    }

    /// The keys that hold an event for longest, and the slowest recent step: `(text, seconds, whether it
    /// awaits a future)`, the slowest first.
    pub(super) fn slowest(&self, py: Python<'_>) -> PyResult<SlowKeys> {
        let now = ticks::now();
        let seconds = |ticks: u64| ticks::to_duration(ticks).as_secs_f64();
        let mut found = self.watching.seen.with(py, |seen| {
            self.inner.with(py, |inner| {
                while seen.suspended.front().is_some_and(|key| !key.holds(inner)) {
                    seen.suspended.pop_front();
                }
                let keys = seen.suspended.iter().take(MOST_LOOKED_AT);
                let held = keys.filter(|key| key.holds(inner)).take(SLOWEST);
                held.map(|key| (key.name, now.saturating_sub(key.since), true))
                    .collect::<Vec<_>>()
            })
        })??;
        self.watching.seen.with(py, |seen| {
            let window = ticks::from_duration(WINDOW);
            if now.saturating_sub(seen.window) > window {
                seen.window = now;
                seen.slowest = [None, seen.slowest[0]];
                self.watching
                    .longest
                    .store(ticks::from_duration(SHORT), Relaxed);
            }
            let recent = |slow: &&Slow| now.saturating_sub(slow.when) < 2 * window;
            let slow = seen.slowest.iter().flatten().filter(recent);
            found.extend(slow.map(|slow| (slow.name, slow.took, false)));
            found.sort_by_key(|(_, took, _)| std::cmp::Reverse(*took));
            found.truncate(SLOWEST);
            let text = |name: Name| seen.texts.get(name.id as usize).map(KeyText::text);
            let told = found.iter().map(|&(name, took, awaits)| {
                let text = text(name).unwrap_or_default();
                (text, seconds(took), awaits)
            });
            Ok(told.collect())
        })?
    }

    /// The keys of this text, or of the string with it.
    pub(super) fn named(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        let quoted = quoted(text);
        let wanted = [shorten(text).as_bytes(), shorten(&quoted).as_bytes()];
        self.watching
            .seen
            .with(py, |seen| {
                self.inner.with(py, |inner| {
                    let live = |id: usize| inner.slots.get(id).is_some_and(|slot| slot.has(LIVE));
                    let texts = seen.texts.iter().enumerate();
                    let same =
                        texts.filter(|(id, known)| wanted.contains(&known.bytes()) && live(*id));
                    same.map(|(id, _)| id as u32).take(MOST_FOUND).collect()
                })
            })?
            .map_err(PyErr::from)
    }

    /// The data of one key.
    pub(super) fn describe<'py>(&self, py: Python<'py>, id: u32) -> PyResult<Bound<'py, PyDict>> {
        let (generator, taken, waiting, flags, task) = self.inner.with(py, |inner| {
            let slot = inner.at(id);
            let waiting = slot.more.len() + usize::from(slot.event.is_some());
            let generator = slot.generator.as_ref();
            (
                generator.map(|generator| generator.object().clone_ref(py)),
                slot.taken,
                waiting,
                slot.flags,
                slot.task.as_ref().map(|task| task.clone_ref(py)),
            )
        })?;
        let text = self.watching.seen.with(py, |seen| {
            let text = seen.texts.get(id as usize);
            text.map(KeyText::text).unwrap_or_default()
        })?;
        let told = PyDict::new(py);
        told.set_item("key", text)?;
        told.set_item("generator", generator)?;
        told.set_item("pinned", task.is_some())?;
        told.set_item("taken", taken)?;
        told.set_item("at_work", flags & AT_WORK != 0)?;
        told.set_item("waiting", waiting)?;
        told.set_item("awaits_event", flags & WAITS != 0 || flags & STARTED == 0)?;
        Ok(told)
    }
}
