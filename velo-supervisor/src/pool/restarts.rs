//! How soon after a failure the next attempt is made, and when to stop trying. Pure: its methods get the
//! time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The pause before the second restart in a row; the first one follows at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Failures in a row after which pending requests are refused.
pub(crate) const PATIENCE: u32 = 5;
/// How long without a failure until the count starts again.
pub(crate) const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// Failures in a row of one kind of process.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    streak: u32,
    last: Option<Instant>,
    /// When time that forgives began: with the last failure, or with the end of an attempt after it. An attempt
    /// forgives nothing, however long it takes.
    calm_since: Option<Instant>,
    reasons: VecDeque<String>,
}

impl Restarts {
    /// An attempt that `began` then has failed now. A process that dies without anything to do began now.
    pub(crate) fn failed(&mut self, began: Instant, now: Instant, why: String) {
        self.forgive(began);
        self.streak = self.streak.saturating_add(1);
        self.last = Some(now);
        self.calm_since = self.last;
        if self.reasons.len() == PATIENCE as usize {
            self.reasons.pop_front();
        }
        self.reasons.push_back(why);
    }

    /// An attempt has come to its end, which does not prove yet that the process lives on.
    pub(crate) fn attempted(&mut self, now: Instant) {
        if self.calm_since.is_some() {
            self.calm_since = Some(now);
        }
    }

    /// One of them has proven to work.
    pub(crate) fn healthy(&mut self) {
        *self = Self::default();
    }

    /// When the next attempt may be made; `None` for at once.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        let pause = match self.streak {
            0 | 1 => return None,
            n => FIRST_PAUSE
                .saturating_mul(1 << (n - 2).min(16))
                .min(LONGEST_PAUSE),
        };
        self.last.map(|last| last + pause)
    }

    /// Whether the next attempt may be made now.
    pub(crate) fn ready(&self, now: Instant) -> bool {
        self.not_before().is_none_or(|at| at <= now)
    }

    /// Whether a request that has waited since then has waited through enough failures.
    pub(crate) fn hopeless(&self, since: Instant) -> bool {
        self.streak >= PATIENCE && self.last.is_some_and(|last| since <= last)
    }

    /// When no request waits, attempts stop after this many failures, until then.
    pub(crate) fn paused_until(&self) -> Option<Instant> {
        if self.streak < PATIENCE {
            return self.not_before();
        }
        self.last.map(|last| last + FORGIVEN_AFTER)
    }

    /// Forgets failures that are long past. Not to be called during an attempt.
    pub(crate) fn forgive(&mut self, now: Instant) {
        if self
            .calm_since
            .is_some_and(|since| now.saturating_duration_since(since) >= FORGIVEN_AFTER)
        {
            self.healthy();
        }
    }

    /// How many failures in a row.
    pub(crate) fn streak(&self) -> u32 {
        self.streak
    }

    /// What went wrong, oldest first.
    /// The same one several times in a row is said once.
    pub(crate) fn reasons(&self) -> String {
        let reasons: Vec<_> = self.reasons.iter().map(String::as_str).collect();
        let runs = reasons.chunk_by(|one, next| one == next);
        let told = runs.map(|run| match run {
            [reason] => (*reason).to_owned(),
            [reason, ..] => format!("{reason} ({} times)", run.len()),
            [] => String::new(),
        });
        told.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_ceiling() {
        let now = Instant::now();
        let mut restarts = Restarts::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            restarts.failed(now, now, "exit".into());
            let pause = restarts.not_before().map_or(Duration::ZERO, |at| at - now);
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn only_those_who_waited_through_it_give_up() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        for n in 0..PATIENCE {
            assert!(!restarts.hopeless(start));
            let at = start + Duration::from_secs(1);
            restarts.failed(at, at, format!("exit {n}"));
        }
        assert!(restarts.hopeless(start));
        assert!(!restarts.hopeless(start + Duration::from_secs(2)));
        assert_eq!(restarts.reasons(), "exit 0, exit 1, exit 2, exit 3, exit 4");
    }

    #[test]
    fn old_failures_are_forgiven() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        restarts.failed(start, start, "exit".into());
        let later = start + FORGIVEN_AFTER;
        restarts.failed(later, later, "exit".into());
        assert_eq!(
            restarts.not_before(),
            None,
            "the second one counts as the first"
        );
    }

    #[test]
    fn an_attempt_does_not_forgive_by_its_own_duration() {
        let mut restarts = Restarts::default();
        let mut now = Instant::now();
        let start = now;
        for _ in 0..PATIENCE {
            let began = restarts.not_before().map_or(now, |at| at.max(now));
            now = began + 6 * FORGIVEN_AFTER;
            restarts.failed(began, now, "not ready".into());
        }
        assert!(restarts.hopeless(start));
    }

    #[test]
    fn time_forgives_from_the_end_of_an_attempt_on() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        restarts.failed(start, start, "exit".into());
        let ready = start + 2 * FORGIVEN_AFTER;
        restarts.attempted(ready);
        let died = ready + Duration::from_secs(1);
        restarts.failed(died, died, "exit".into());
        assert_eq!(restarts.streak(), 2, "its start took so long, not its life");
        restarts.attempted(died);
        let later = died + FORGIVEN_AFTER;
        restarts.failed(later, later, "exit".into());
        assert_eq!(restarts.streak(), 1);
    }
}
