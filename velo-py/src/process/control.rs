//! The control messages of a link, with errors as Python sees them.

use pyo3::prelude::*;
use velo_shm::{Consumer, Link, Producer, ReserveError};
use velo_supervisor::control::{self, ControlError};
pub use velo_supervisor::control::{Control, SLOT};

use crate::errors;

/// The control rings of a link.
pub fn open(end: &Link) -> PyResult<(Producer, Consumer)> {
    control::open(end).map_err(|error| errors::pool(format!("cannot use a link: {error}")))
}

/// Why a message was not sent.
pub enum Unsent {
    /// The other side wrote over the ring: nothing can be said on it any more.
    Broken(PyErr),
    /// There is no room.
    Refused(PyErr),
}

impl From<Unsent> for PyErr {
    fn from(unsent: Unsent) -> PyErr {
        match unsent {
            Unsent::Broken(error) | Unsent::Refused(error) => error,
        }
    }
}

/// Queues and publishes a message. The caller notifies.
pub fn send(_py: Python<'_>, producer: &mut Producer, message: &Control) -> Result<(), Unsent> {
    control::send(producer, message).map_err(|refused| match refused {
        ReserveError::Corrupted(found) => Unsent::Broken(errors::ring_corrupted(&found)),
        refused => Unsent::Refused(errors::pool(format!(
            "the worker does not read its control messages: {refused}"
        ))),
    })
}

/// The next message, if one is there.
pub fn receive(_py: Python<'_>, consumer: &mut Consumer) -> PyResult<Option<Control>> {
    control::receive(consumer).map_err(|error| match error {
        ControlError::Ring(found) => errors::ring_corrupted(&found),
        senseless @ ControlError::Senseless(_) => errors::corrupted(senseless.to_string()),
    })
}
