//! How much the slow steps of one function hold up the other streams of its worker.

use std::time::Duration;

use velo_shm::ticks;

/// Slow steps are added up over this span, and a stream is reported at most once in it.
const WINDOW: Duration = Duration::from_secs(60);

/// Several slow steps that take this long together, within a window, are a habit. A single one may be an
/// import.
const HABIT: Duration = Duration::from_millis(250);

/// The slow steps of one function, within a window.
#[derive(Debug, Default)]
pub struct SlowSteps {
    /// When the window began, in ticks.
    since: u64,
    steps: u32,
    ticks: u64,
    /// The reports of this window.
    held_up: bool,
    habit: bool,
}

/// The report of a slow step for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowReport {
    /// Other streams had to wait for this step.
    pub held_up: bool,
    /// Slow steps have become a habit of the function.
    pub habit: bool,
}

impl SlowSteps {
    /// Notes a slow step that ended `now` and took this many ticks; `shared` says whether other streams
    /// live in the worker. None: the client knows already.
    pub fn note(&mut self, now: u64, took: u64, shared: bool) -> Option<SlowReport> {
        let open_for = ticks::to_duration(now.saturating_sub(self.since));
        if self.steps == 0 || open_for >= WINDOW {
            *self = SlowSteps {
                since: now,
                ..SlowSteps::default()
            };
        }
        self.steps = self.steps.saturating_add(1);
        self.ticks = self.ticks.saturating_add(took);
        let habit = self.steps > 1 && ticks::to_duration(self.ticks) >= HABIT;
        let report = SlowReport {
            held_up: shared && !std::mem::replace(&mut self.held_up, true),
            habit: habit && !std::mem::replace(&mut self.habit, true),
        };
        (report.held_up || report.habit).then_some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD_UP: Option<SlowReport> = Some(SlowReport {
        held_up: true,
        habit: false,
    });
    const HABITUAL: Option<SlowReport> = Some(SlowReport {
        held_up: false,
        habit: true,
    });

    fn after(span: Duration) -> u64 {
        // A little late: how long a tick is becomes known more precisely while the program runs.
        let ticks = ticks::from_duration(span);
        1_000_000 + ticks + ticks / 20
    }

    fn long(millis: u64) -> u64 {
        ticks::from_duration(Duration::from_millis(millis)) + 1_000
    }

    #[test]
    fn a_step_that_others_waited_for_is_reported_once_a_window() {
        let mut slow = SlowSteps::default();
        assert_eq!(slow.note(after(Duration::ZERO), long(60), true), HELD_UP);
        assert_eq!(slow.note(after(WINDOW / 2), long(60), true), None);
        assert_eq!(slow.note(after(WINDOW), long(60), true), HELD_UP);
    }

    #[test]
    fn nobody_waits_for_a_function_that_is_alone() {
        let mut slow = SlowSteps::default();
        assert_eq!(slow.note(after(Duration::ZERO), long(60), false), None);
        assert_eq!(slow.note(after(WINDOW / 3), long(60), true), HELD_UP);
    }

    #[test]
    fn one_long_step_is_no_habit_and_several_are() {
        let mut slow = SlowSteps::default();
        assert_eq!(slow.note(after(Duration::ZERO), long(5_000), false), None);
        assert_eq!(slow.note(after(WINDOW / 4), long(60), false), HABITUAL);
        assert_eq!(slow.note(after(WINDOW / 2), long(60), false), None);
    }

    #[test]
    fn short_slow_steps_become_a_habit_when_they_add_up() {
        let mut slow = SlowSteps::default();
        assert_eq!(slow.note(after(Duration::ZERO), long(100), false), None);
        assert_eq!(slow.note(after(WINDOW / 4), long(100), false), None);
        assert_eq!(slow.note(after(WINDOW / 2), long(100), false), HABITUAL);
    }

    #[test]
    fn a_window_forgets_the_one_before() {
        let mut slow = SlowSteps::default();
        assert_eq!(slow.note(after(Duration::ZERO), long(200), false), None);
        assert_eq!(slow.note(after(WINDOW), long(100), false), None);
    }
}
