//! The worker's end of a link's control messages.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::prelude::*;
use velo_shm::{Consumer, Link, Producer, fork};

use crate::cell::GilCell;
use crate::errors;
use crate::process::control::{self, Control, Unsent};

/// The worker's end of a link, and the control messages on it. All streams of the link share it.
pub struct ControlLine {
    pub end: Link,
    rings: GilCell<Rings>,
    /// The client has written over the control messages: no message can be sent any more.
    broken: AtomicBool,
    /// In which generation of forks it was made.
    born: u32,
}

struct Rings {
    outward: Producer,
    inward: Consumer,
}

impl ControlLine {
    /// The worker's side of a fresh link.
    pub fn new(end: Link) -> PyResult<Self> {
        let (outward, inward) = control::open(&end)?;
        Ok(ControlLine {
            end,
            rings: GilCell::new(Rings { outward, inward }),
            broken: AtomicBool::new(false),
            born: fork::generation(),
        })
    }

    /// Whether this is a process that a function has forked: the link is its worker's.
    #[inline]
    pub fn is_of_parent(&self) -> bool {
        self.born != fork::generation()
    }

    /// Sends a message to the client.
    pub fn send(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        if self.is_of_parent() {
            return Err(errors::of_worker());
        }
        let sent = self
            .rings
            .with(py, |rings| control::send(py, &mut rings.outward, message))?;
        if let Err(Unsent::Broken(_)) = &sent {
            self.broken.store(true, Relaxed);
            self.end.notify_self(control::SLOT); // the worker's next turn finds the link broken
        }
        sent?;
        self.end.notify(control::SLOT);
        Ok(())
    }

    /// The messages that have come from the client.
    ///
    /// # Errors
    /// When the client has written over them, or one of them makes no sense.
    pub fn receive(&self, py: Python<'_>) -> PyResult<Vec<Control>> {
        self.rings.with(py, |rings| {
            let mut messages = Vec::new();
            while let Some(message) = control::receive(py, &mut rings.inward)? {
                messages.push(message);
            }
            Ok(messages)
        })?
    }

    /// An error if no message can be sent any more.
    pub fn check(&self) -> PyResult<()> {
        match self.broken.load(Relaxed) {
            false => Ok(()),
            true => Err(errors::corrupted(
                "the control messages of a link were written over",
            )),
        }
    }
}
