//! How much the steps of one function hold up whoever else lives in its worker.

use std::time::Duration;

use velo_shm::ticks;

/// What is looked at together, and how often a stream is named at most.
const WINDOW: Duration = Duration::from_secs(60);

/// Slow steps that take so long within a window, and are more than one, are a habit. One alone may be
/// an import.
const HABIT: Duration = Duration::from_millis(250);

/// The slow steps of one function, within a window.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// When it began, in ticks.
    since: u64,
    steps: u32,
    ticks: u64,
    named: bool,
    habit: bool,
}

/// What the client has yet to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct News {
    /// Others had to wait for this step.
    pub(super) held_up: bool,
    /// It is not the only one.
    pub(super) habit: bool,
}

impl Held {
    /// Notes a slow step that ended `now`; `shared` says whether others live in the worker.
    pub(super) fn note(&mut self, now: u64, took: u64, shared: bool) -> Option<News> {
        let open_for = ticks::to_duration(now.saturating_sub(self.since));
        if self.steps == 0 || open_for >= WINDOW {
            *self = Held {
                since: now,
                ..Held::default()
            };
        }
        self.steps = self.steps.saturating_add(1);
        self.ticks = self.ticks.saturating_add(took);
        let habit = self.steps > 1 && ticks::to_duration(self.ticks) >= HABIT;
        let news = News {
            held_up: shared && !std::mem::replace(&mut self.named, true),
            habit: habit && !std::mem::replace(&mut self.habit, true),
        };
        (news.held_up || news.habit).then_some(news)
    }
}
