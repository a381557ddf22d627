//! The thread, the event loop and the process that own a stream, and the refusal of all others.

use pyo3::intern;
use pyo3::prelude::*;
use velo_shm::fork;

use crate::errors;
use crate::user::channel::Channel;
use crate::user::state::{StreamCore, this_thread};

impl StreamCore {
    /// Refuses use from another thread.
    #[inline]
    pub fn check_thread(&self) -> PyResult<()> {
        if this_thread() == self.thread && self.born == fork::generation() {
            return Ok(());
        }
        self.check_owner()
    }

    /// The misuse that `check_loop` and `check_thread` refuse.
    #[cold]
    fn check_owner(&self) -> PyResult<()> {
        if let Some(why) = self.is_of_parent() {
            return Err(errors::closed(why));
        }
        if this_thread() == self.thread {
            return Ok(());
        }
        Err(errors::busy(
            "this stream belongs to another thread; use it there, for example with \
             `asyncio.run_coroutine_threadsafe(stream.send(event), loop)`",
        ))
    }

    /// The reason why a process that was forked since cannot use the stream: its worker serves the
    /// parent. An inline stream was forked with its function, and continues in both processes.
    pub fn is_of_parent(&self) -> Option<String> {
        let inherited = self.born != fork::generation() && matches!(self.channel, Channel::Ring(_));
        inherited.then(|| {
            format!(
                "stream `{}` belongs to the process that this one was forked from; open a stream of \
                 its own in this process",
                self.name
            )
        })
    }

    /// Refuses use from another event loop.
    #[inline]
    pub fn check_loop(&self, py: Python<'_>) -> PyResult<()> {
        self.check_thread()?;
        // In the stream's thread, either its loop runs or another one does. To ask for the running
        // one takes a system call in Python 3.11.
        let event_loop = self.event_loop.bind(py);
        if event_loop
            .call_method0(intern!(py, "is_running"))?
            .is_truthy()?
        {
            return Ok(());
        }
        Err(errors::busy(
            "this stream was opened in another event loop; open one in this loop",
        ))
    }
}
