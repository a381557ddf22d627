//! Where a worker is in a lane: it runs the functions of many keys as one stream, so that the number of
//! the event in its activity has to tell the key as well.

/// Marks the activity of a lane, which no count of events reaches.
const LANE: u64 = 1 << 63;
const AT_WORK: u64 = 1 << 62;
const KEY_SHIFT: u32 = 30;
const EVENT: u64 = (1 << KEY_SHIFT) - 1;
/// In place of the number of a key: the worker is between keys.
const NO_KEY: u32 = u32::MAX;

/// The key that a worker runs, and the event that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneActivity {
    /// The number of the key in the lane.
    pub key: u32,
    /// Which of its events the key has taken last, counted from 1 in this worker, in 30 bits; 0
    /// before the first.
    pub event: u32,
    /// The key is at work on that event, and has not asked for the next one.
    pub at_work: bool,
}

impl LaneActivity {
    /// The worker does what belongs to no key.
    pub const NONE: u64 = LANE | (NO_KEY as u64) << KEY_SHIFT;

    /// As it stands in the worker's activity in place of the number of an event.
    #[must_use]
    pub fn pack(self) -> u64 {
        let at_work = if self.at_work { AT_WORK } else { 0 };
        let key = u64::from(self.key) << KEY_SHIFT;
        LANE | at_work | key | u64::from(self.event) & EVENT
    }

    /// The key of a packed activity. None: the activity is not that of a lane, or no key runs.
    #[must_use]
    pub fn unpack(packed: u64) -> Option<Self> {
        let key = ((packed & !(LANE | AT_WORK)) >> KEY_SHIFT) as u32;
        (packed & LANE != 0 && key != NO_KEY).then_some(LaneActivity {
            key,
            event: (packed & EVENT) as u32,
            at_work: packed & AT_WORK != 0,
        })
    }

    /// The number of the event in an activity, that of a lane or not.
    #[must_use]
    pub fn event_of(packed: u64) -> u64 {
        match packed & LANE {
            0 => packed,
            _ => packed & EVENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked() {
        for key in [0, 7, u32::MAX - 1] {
            for event in [0, 1, (1 << 30) - 1] {
                for at_work in [true, false] {
                    let activity = LaneActivity {
                        key,
                        event,
                        at_work,
                    };
                    assert_eq!(LaneActivity::unpack(activity.pack()), Some(activity));
                    assert_eq!(LaneActivity::event_of(activity.pack()), u64::from(event));
                }
            }
        }
    }

    #[test]
    fn an_event_of_a_stream_names_no_key() {
        assert_eq!(LaneActivity::unpack(41), None);
        assert_eq!(LaneActivity::event_of(41), 41);
    }

    #[test]
    fn between_keys_there_is_no_key_and_no_event() {
        assert_eq!(LaneActivity::unpack(LaneActivity::NONE), None);
        assert_eq!(LaneActivity::event_of(LaneActivity::NONE), 0);
    }
}
