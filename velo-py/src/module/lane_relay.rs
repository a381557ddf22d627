//! The other end of a remote lane: puts its frames into the rings of a lane of this process, and takes the
//! frames that come back.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::cell::GilCell;
use crate::errors;
use crate::ffi::send_slot::Step;
use crate::flow::Interest;
use crate::keys::remote_lane::{CANCEL, END, FRAME_HEAD, first_frame, put_frame};
use crate::lane_frames::{EVENT, REQUEST};
use crate::process::client::blame::{Death, PlainDeath};
use crate::process::client::channel::RingChannel;
use crate::process::client::lane::NextFrame;
use crate::user::channel::Channel;
use crate::user::stream::Opened;

/// See [`RemoteLane`](crate::keys::remote_lane::RemoteLane), its caller's end.
#[pyclass(frozen, module = "velo._core")]
pub struct LaneRelay {
    opened: Py<Opened>,
    state: GilCell<State>,
}

#[derive(Default)]
struct State {
    /// What has come and found no room yet, from `done` on.
    input: Vec<u8>,
    done: usize,
    /// There was no room for the next of it.
    stuck: bool,
    /// What has come back and was not taken.
    output: Vec<u8>,
    over: Option<(Option<PyErr>, Option<Death>)>,
}

#[pymethods]
impl LaneRelay {
    /// Relays to a lane that was opened just now.
    #[new]
    fn new(opened: Py<Opened>) -> Self {
        LaneRelay {
            opened,
            state: GilCell::default(),
        }
    }

    /// Puts frames into the lane, behind those that wait. How many bytes find no room.
    fn push(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<usize> {
        self.state.with(py, |state| {
            let done = std::mem::take(&mut state.done);
            state.input.drain(..done);
            state.input.extend_from_slice(bytes);
        })?;
        self.go_on(py)
    }

    /// Goes on with those that wait. How many bytes find no room.
    fn go_on(&self, py: Python<'_>) -> PyResult<usize> {
        let core = self.opened.get().core();
        let mut events = 0;
        let left = self.state.with(py, |state| -> PyResult<usize> {
            state.stuck = false;
            // The rest of a frame that is not whole comes later.
            while let Some((kind, payload)) = first_frame(&state.input[state.done..]) {
                let sent = match kind {
                    END => core.try_end(py, "all keys have ended")?,
                    CANCEL => core.abandon(py).map(|()| true)?,
                    kind => {
                        let counted = kind == EVENT || kind == REQUEST;
                        events += u64::from(counted);
                        self.ring()?.send_frame(py, (kind, counted), payload)?
                    }
                };
                if !sent {
                    state.stuck = true;
                    return Ok(state.input.len() - state.done);
                }
                state.done += FRAME_HEAD + payload.len();
            }
            Ok(0)
        })??;
        if events > 0 {
            core.count(py, events)?;
        }
        core.channel.flush_events(py)?;
        Ok(left)
    }

    /// Takes what has come back, `most` bytes at most. Less than that is all there is.
    fn take<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyBytes>> {
        let mut bytes = self
            .state
            .with(py, |state| std::mem::take(&mut state.output))?;
        while bytes.len() < most && !self.is_over(py)? {
            let put = |kind: u8, payload: &[u8]| put_frame(&mut bytes, kind, &[payload]);
            match self.ring()?.next_frame(py, put)? {
                NextFrame::Frame(put) => {
                    put?;
                }
                NextFrame::Nothing => break,
                NextFrame::Over(error, death) => {
                    let core = self.opened.get().core();
                    core.over(py, || "the lane has ended".to_owned())?;
                    self.state
                        .with(py, |state| state.over = Some((error, death)))?;
                }
            }
        }
        self.opened.get().core().channel.flush_results(py)?;
        let rest = bytes.split_off(bytes.len().min(most));
        self.state.with(py, |state| state.output = rest)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// What to wait on until frames come back, or there is room for those that wait; None if that is so
    /// now. `batches`: some may come late, so that more come together.
    fn wait(&self, py: Python<'_>, batches: bool) -> PyResult<Option<Py<PyAny>>> {
        let (there, stuck) = self.state.with(py, |state| {
            let there = state.over.is_some() || !state.output.is_empty();
            (there, state.stuck)
        })?;
        if there {
            return Ok(None);
        }
        let core = self.opened.get().core();
        let interest = Interest {
            space: stuck,
            throughput: batches,
            ..Interest::RESULTS
        };
        match core.sleep(py, &core.waits.recv, interest)? {
            Some(Step::Yield(future)) => {
                future.setattr(py, intern!(py, "_asyncio_future_blocking"), false)?;
                Ok(Some(future))
            }
            _ => Ok(None),
        }
    }

    /// Cancels all keys: the caller is gone.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.opened.get().core().abandon(py)
    }

    /// How many events the lane has that are not handled.
    #[getter]
    fn pending(&self, py: Python<'_>) -> PyResult<u64> {
        let (sent, handled) = self.opened.get().core().channel.progress(py)?;
        Ok(sent.saturating_sub(handled))
    }

    /// The error that the lane has ended with, and how its worker has died, if it has; None as long as it
    /// goes on, or has output.
    #[getter]
    #[allow(clippy::type_complexity)]
    fn over(&self, py: Python<'_>) -> PyResult<Option<(Option<Py<PyAny>>, Option<PlainDeath>)>> {
        Ok(self.state.with(py, |state| {
            let (error, death) = state.over.as_ref().filter(|_| state.output.is_empty())?;
            let error = error
                .as_ref()
                .map(|error| error.value(py).clone().into_any().unbind());
            Some((error, death.map(PlainDeath::from)))
        })?)
    }
}

impl LaneRelay {
    fn ring(&self) -> PyResult<&RingChannel> {
        match &self.opened.get().core().channel {
            Channel::Ring(ring) => Ok(ring),
            Channel::Inline(_) => Err(errors::velo("a lane in this process needs no relay")),
        }
    }

    fn is_over(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |state| state.over.is_some())?)
    }
}
