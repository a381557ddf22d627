//! The ports of the streams that a client has opened on one link.

use std::collections::HashMap;
use std::sync::Arc;

use pyo3::prelude::*;
use velo_shm::Limits;

use super::control_line::ControlLine;
use super::ring_port::{Opening, RingPort};
use crate::cell::GilCell;
use crate::errors;
use crate::function_side::FunctionSide;
use crate::process::ring_pair::RingPair;

/// The streams of one link, by slot.
pub struct Ports {
    pub line: Arc<ControlLine>,
    open: GilCell<HashMap<u32, Arc<RingPort>>>,
}

impl Ports {
    /// No streams yet.
    pub fn new(line: ControlLine) -> Self {
        Ports {
            line: Arc::new(line),
            open: GilCell::default(),
        }
    }

    /// Makes the port of a stream that the client has opened. `in_session` says that the function goes
    /// on without this port.
    ///
    /// # Errors
    /// When what the client has written in the slot makes no sense.
    pub fn open(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        opening: &Opening,
        function: Arc<FunctionSide>,
        in_session: bool,
    ) -> PyResult<Arc<RingPort>> {
        let slot = opening.slot;
        let limits = Limits {
            events: opening.buffer,
            bytes: opening.max_bytes,
        };
        let (producer, consumer) = self
            .line
            .end
            .open_slot(slot, limits)
            .map_err(|error| errors::corrupted(format!("cannot open slot {slot}: {error}")))?;
        let rings = RingPair::new(producer, consumer, opening.max_bytes);
        let line = self.line.clone();
        let port = RingPort::new(line, event_loop, opening, rings, function, in_session);
        self.open.with(py, |open| open.insert(slot, port.clone()))?;
        Ok(port)
    }

    /// The port in this slot.
    pub fn get(&self, py: Python<'_>, slot: u32) -> Option<Arc<RingPort>> {
        let port = self.open.with(py, |open| open.get(&slot).cloned());
        port.ok().flatten()
    }

    /// The port in this slot, if it is the stream of this number.
    pub fn get_number(&self, py: Python<'_>, slot: u32, number: u64) -> Option<Arc<RingPort>> {
        self.get(py, slot).filter(|port| port.number == number)
    }

    /// The client has seen the end of the stream in this slot.
    pub fn close(&self, py: Python<'_>, slot: u32) {
        if let Ok(Some(port)) = self.open.with(py, |open| open.remove(&slot)) {
            port.close(py);
        }
    }
}
