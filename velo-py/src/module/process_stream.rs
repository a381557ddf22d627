//! Opening a stream in process mode.

use std::sync::Arc;

use pyo3::prelude::*;
use velo_supervisor::Key;

use crate::flow::WhenFull;
use crate::process::client::channel::RingChannel;
use crate::process::client::handle::ClientLinkHandle;
use crate::process::client::opening::{self, NewJournal, NewStream, SessionKey};
use crate::process::client::ring_stream::{CancelStream, UsageLimits};
use crate::user::channel::Channel;
use crate::user::state::StreamCore;
use crate::user::stream::Opened;

/// The limits of a function's streams.
#[pyclass(frozen, module = "velo._core")]
pub struct StreamLimits {
    buffer: u32,
    max_bytes: u64,
    full: WhenFull,
    usage: UsageLimits,
}

#[pymethods]
impl StreamLimits {
    #[new]
    #[pyo3(signature = (*, buffer, max_bytes, full, stall_timeout=None, event_timeout=None,
                        max_worker_memory=None))]
    fn new(
        buffer: u32,
        max_bytes: u64,
        full: &str,
        stall_timeout: Option<f64>,
        event_timeout: Option<f64>,
        max_worker_memory: Option<u64>,
    ) -> PyResult<Self> {
        Ok(StreamLimits {
            buffer,
            max_bytes,
            full: full.parse()?,
            usage: UsageLimits {
                stall_timeout,
                event_timeout,
                max_worker_memory,
            },
        })
    }
}

/// How a stream outlives its worker: with `recover="replay"`.
#[pyclass(frozen, module = "velo._core")]
pub struct RecoveryTerms {
    journal_limit: usize,
    has_state: bool,
    max_restarts: u32,
    recover: Py<PyAny>,
}

#[pymethods]
impl RecoveryTerms {
    /// `recover(recovery, error, poison)` is called when the stream needs another worker.
    #[new]
    #[pyo3(signature = (*, journal_limit, has_state, max_restarts, recover))]
    fn new(journal_limit: usize, has_state: bool, max_restarts: u32, recover: Py<PyAny>) -> Self {
        RecoveryTerms {
            journal_limit,
            has_state,
            max_restarts,
            recover,
        }
    }
}

/// The grant by which a stream attaches to the session under a key.
#[pyclass(frozen, module = "velo._core")]
pub struct SessionGrant {
    key: [u8; 32],
    grant: u64,
    timeout: Option<f64>,
    shown: String,
    stored: Vec<u8>,
}

#[pymethods]
impl SessionGrant {
    #[new]
    #[pyo3(signature = (*, key, grant, timeout, shown, stored))]
    fn new(
        key: [u8; 32],
        grant: u64,
        timeout: Option<f64>,
        shown: String,
        stored: Vec<u8>,
    ) -> Self {
        SessionGrant {
            key,
            grant,
            timeout,
            shown,
            stored,
        }
    }
}

#[pymethods]
impl ClientLinkHandle {
    /// Opens a stream of the function that the worker knows by this number. None when the link has been
    /// retired: another link has to be used. `origin` is the `Recovery.origin` of a stream that this worker does not
    /// live to open.
    #[pyo3(signature = (event_loop, function, limits, name, *, origin=None, recovery=None, session=None, lane=false))]
    #[allow(clippy::too_many_arguments)]
    fn open(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        function: u64,
        limits: &StreamLimits,
        name: String,
        origin: Option<Py<PyAny>>,
        recovery: Option<&RecoveryTerms>,
        session: Option<&SessionGrant>,
        lane: bool,
    ) -> PyResult<Option<Opened>> {
        let new = NewStream {
            name: name.clone(),
            function,
            buffer: limits.buffer,
            max_bytes: limits.max_bytes,
            full: limits.full,
            limits: limits.usage,
            recovery: recovery.map(|terms| NewJournal {
                limit: terms.journal_limit,
                has_state: terms.has_state,
                max_restarts: terms.max_restarts,
                recover: terms.recover.clone_ref(py),
            }),
            session: session.map(|session| SessionKey {
                key: Key(session.key),
                grant: session.grant,
                timeout: session.timeout,
                shown: session.shown.clone(),
                stored: session.stored.clone(),
            }),
            lane,
            origin,
        };
        let Some(stream) = opening::open(py, &self.link, new)? else {
            return Ok(None);
        };
        let cancel = Arc::new(CancelStream::of(&stream));
        let waits = stream.waits().clone();
        let channel = Channel::Ring(RingChannel::new(stream));
        let core = StreamCore::new(event_loop, channel, waits, cancel, limits.full, name);
        Ok(Some(Opened::new(core)))
    }
}
