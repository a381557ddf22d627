//! The data that a key table keeps for `velo top`, `velo status` and `velo inspect`.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use pyo3::prelude::*;
use velo_shm::ticks;

use crate::cell::GilCell;
use crate::key_text::KeyText;
use crate::lane_frames::Name;

/// Shorter steps are not reported.
pub(super) const SHORT: Duration = Duration::from_millis(1);

/// The watched data of a table.
pub struct Watching {
    pub(super) seen: GilCell<Seen>,
    /// A step is noted that takes more ticks than this.
    pub(super) longest: AtomicU64,
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) opened: u64,
    /// The texts of keys, by the key's number.
    pub(super) texts: Vec<KeyText>,
    /// Keys that await a future other than an event, the longest wait first.
    pub(super) suspended: VecDeque<Suspended>,
    /// The length at which keys that run again are removed from `suspended`.
    pub(super) many: usize,
    /// The slowest step of this window, and of the one before.
    pub(super) slowest: [Option<Slow>; 2],
    /// When this window began, in ticks.
    pub(super) window: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Suspended {
    pub(super) name: Name,
    /// The number of the event at which it waits.
    pub(super) taken: u32,
    pub(super) since: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Slow {
    pub(super) name: Name,
    pub(super) took: u64,
    pub(super) when: u64,
}

impl Default for Watching {
    fn default() -> Self {
        Watching {
            seen: GilCell::default(),
            longest: AtomicU64::new(ticks::from_duration(SHORT)),
        }
    }
}

impl Watching {
    /// A key opens.
    pub fn opens(&self, py: Python<'_>, id: u32, text: KeyText) {
        let _ = self.seen.with(py, |seen| {
            seen.opened += 1;
            let id = id as usize;
            if id == seen.texts.len() {
                seen.texts.push(text);
            } else if let Some(place) = seen.texts.get_mut(id) {
                *place = text;
            }
        });
    }
}
