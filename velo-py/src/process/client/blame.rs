//! Which event of a stream ends its workers.
//!
//! A worker's death has a place in the stream: the function was at work on an event, or past it. Deaths
//! in the same place in a row make the function the reason. A death for which it must be the reason
//! counts for more than one for which something else may be.

/// A place in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the event that the function took last; 0 before the first.
    pub event: u64,
    /// The function was at work on that event, and not past it.
    pub at_work: bool,
}

/// In which function a worker was when it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiedIn {
    /// In the function of this stream. The event that it took last, as the worker counts them.
    This(u64),
    /// In that of another stream.
    Another,
    /// In none, or it is not known.
    Unknown,
}

/// How a worker died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    pub function: DiedIn,
    /// By `SIGKILL`, which may well have come from outside.
    pub killed: bool,
}

/// A [`Death`] as Python code passes it on: whether the worker was in the function of this stream (None: in
/// none, or it is not known), the event that it took last there, and whether the worker was killed.
pub type PlainDeath = (Option<bool>, u64, bool);

impl From<PlainDeath> for Death {
    fn from((this, event, killed): PlainDeath) -> Self {
        let function = match this {
            Some(true) => DiedIn::This(event),
            Some(false) => DiedIn::Another,
            None => DiedIn::Unknown,
        };
        Death { function, killed }
    }
}

impl From<Death> for PlainDeath {
    fn from(death: Death) -> Self {
        let (this, event) = match death.function {
            DiedIn::This(event) => (Some(true), event),
            DiedIn::Another => (Some(false), 0),
            DiedIn::Unknown => (None, 0),
        };
        (this, event, death.killed)
    }
}

/// What a death counts for which the function need not be the reason, and one for which it must be.
const DOUBTFUL: u32 = 1;
const CERTAIN: u32 = 10;

/// How far a worker had come with a stream when it died, as the worker counts events.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// Events that it was sent.
    pub sent: u64,
    /// Events that it was done with.
    pub handled: u64,
    /// The function had asked for its first event.
    pub asked: bool,
}

/// What deaths have to count for a function to be given up that may be restarted so often.
pub fn enough(max_restarts: u32) -> u32 {
    CERTAIN.saturating_mul(max_restarts.saturating_add(1))
}

impl Death {
    /// What it counts for, where the function need not be the reason of a kill.
    pub fn guilt(self) -> u32 {
        if self.killed { DOUBTFUL } else { CERTAIN }
    }

    /// Where it was in this stream, as the worker counts events, and whether the function must be the
    /// reason. None: it was elsewhere.
    fn place(self, reached: Reached) -> Option<(Place, bool)> {
        // The function asks for an event, and takes it, in one go.
        let has_event = reached.asked && reached.sent > reached.handled;
        let at = |event, at_work| Place { event, at_work };
        match self.function {
            DiedIn::This(event) if event > reached.handled => Some((at(event, true), true)),
            DiedIn::This(_) => Some((at(reached.handled, false), !self.killed)),
            DiedIn::Unknown if has_event => Some((at(reached.handled + 1, true), !self.killed)),
            DiedIn::Unknown | DiedIn::Another => None,
        }
    }
}

/// The place of the last death, and what the deaths there count in a row.
#[derive(Debug, Default)]
pub struct Blame(Option<(Place, u32)>);

impl Blame {
    /// Notes a death. Its place, once deaths there count for more than `max_restarts` certain ones.
    ///
    /// `number_of` makes the number of an event from the worker's count.
    pub fn note(
        &mut self,
        death: Death,
        reached: Reached,
        max_restarts: u32,
        number_of: impl FnOnce(Place) -> u64,
    ) -> Option<Place> {
        let (place, certain) = death.place(reached)?;
        let place = Place {
            event: number_of(place),
            ..place
        };
        let before = match self.0 {
            Some((last, guilt)) if last == place => guilt,
            _ => 0,
        };
        let guilt = before.saturating_add(if certain { CERTAIN } else { DOUBTFUL });
        self.0 = Some((place, guilt));
        (guilt >= enough(max_restarts)).then_some(place)
    }

    /// The event of the last death was left out: what comes now is a new story.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACHED: Reached = Reached {
        sent: 9,
        handled: 4,
        asked: true,
    };

    fn death(function: DiedIn) -> Death {
        Death {
            function,
            killed: false,
        }
    }

    fn killed(function: DiedIn) -> Death {
        Death {
            function,
            killed: true,
        }
    }

    fn note(blame: &mut Blame, death: Death, reached: Reached) -> Option<Place> {
        blame.note(death, reached, 1, |place| place.event)
    }

    fn at_work(event: u64) -> Option<Place> {
        Some(Place {
            event,
            at_work: true,
        })
    }

    #[test]
    fn a_death_that_was_passed_on_is_the_same() {
        for function in [DiedIn::This(5), DiedIn::Another, DiedIn::Unknown] {
            for sent in [death(function), killed(function)] {
                assert_eq!(Death::from(PlainDeath::from(sent)), sent);
            }
        }
    }

    #[test]
    fn two_deaths_at_one_event_are_too_many_after_one_restart() {
        let mut blame = Blame::default();
        assert_eq!(note(&mut blame, death(DiedIn::This(5)), REACHED), None);
        assert_eq!(
            note(&mut blame, death(DiedIn::This(5)), REACHED),
            at_work(5)
        );
    }

    #[test]
    fn deaths_elsewhere_in_the_stream_begin_anew() {
        let mut blame = Blame::default();
        assert_eq!(note(&mut blame, death(DiedIn::This(5)), REACHED), None);
        assert_eq!(note(&mut blame, death(DiedIn::This(6)), REACHED), None);
        assert_eq!(note(&mut blame, death(DiedIn::This(5)), REACHED), None);
    }

    #[test]
    fn a_death_in_another_function_does_not_count_and_does_not_forgive() {
        let mut blame = Blame::default();
        assert_eq!(note(&mut blame, death(DiedIn::This(5)), REACHED), None);
        assert_eq!(note(&mut blame, death(DiedIn::Another), REACHED), None);
        assert_eq!(
            note(&mut blame, death(DiedIn::This(5)), REACHED),
            at_work(5)
        );
    }

    #[test]
    fn past_an_event_is_another_place_than_at_work_on_it() {
        let mut blame = Blame::default();
        let past = Some(Place {
            event: 4,
            at_work: false,
        });
        assert_eq!(note(&mut blame, death(DiedIn::This(4)), REACHED), None);
        assert_eq!(note(&mut blame, death(DiedIn::This(4)), REACHED), past);
    }

    #[test]
    fn a_kill_between_events_needs_ten_times_as_many() {
        let mut blame = Blame::default();
        for _ in 0..19 {
            assert_eq!(note(&mut blame, killed(DiedIn::This(4)), REACHED), None);
        }
        assert!(note(&mut blame, killed(DiedIn::This(4)), REACHED).is_some());
    }

    #[test]
    fn a_kill_at_work_is_certain() {
        let mut blame = Blame::default();
        assert_eq!(note(&mut blame, killed(DiedIn::This(5)), REACHED), None);
        assert_eq!(
            note(&mut blame, killed(DiedIn::This(5)), REACHED),
            at_work(5)
        );
    }

    #[test]
    fn an_unknown_death_counts_where_an_event_was_taken() {
        let mut blame = Blame::default();
        assert_eq!(note(&mut blame, death(DiedIn::Unknown), REACHED), None);
        assert_eq!(
            note(&mut blame, death(DiedIn::Unknown), REACHED),
            at_work(5)
        );
        let idle = Reached {
            handled: 9,
            ..REACHED
        };
        let unasked = Reached {
            asked: false,
            ..REACHED
        };
        for reached in [idle, unasked] {
            let mut blame = Blame::default();
            for _ in 0..100 {
                assert_eq!(note(&mut blame, death(DiedIn::Unknown), reached), None);
            }
        }
    }

    #[test]
    fn leaving_the_event_out_forgets_its_deaths() {
        let mut blame = Blame::default();
        assert_eq!(note(&mut blame, death(DiedIn::This(5)), REACHED), None);
        blame.forget();
        assert_eq!(note(&mut blame, death(DiedIn::This(5)), REACHED), None);
    }

    #[test]
    fn places_compare_by_the_numbers_of_events() {
        let mut blame = Blame::default();
        let first = blame.note(death(DiedIn::This(5)), REACHED, 1, |place| {
            place.event + 100
        });
        let again = Reached {
            handled: 0,
            ..REACHED
        };
        let second = blame.note(death(DiedIn::This(1)), again, 1, |place| place.event + 104);
        assert_eq!((first, second), (None, at_work(105)));
    }
}
