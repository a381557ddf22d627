//! What the caller of a lane reads of it.

use pyo3::prelude::*;

use super::blame::Death;
use crate::lane_frames::Message;

/// What reading a lane came to.
pub enum Told {
    Message(Message),
    /// Nothing is there yet.
    Nothing,
    /// The lane is over, for this reason; and how its worker has died, if it has.
    Over(Option<PyErr>, Option<Death>),
}
