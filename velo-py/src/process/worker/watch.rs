//! A turn of a worker's event loop: what its clients have for it, or a sleep until they do.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::{Link, Spin, Woken, wait_any};

use super::WorkerLink;
use super::serve::Served;
use crate::ffi::fd;
use crate::process::ring_pair::new_spin;

/// More than anybody waits.
const FOREVER: Duration = Duration::from_secs(86_400);
/// While there are other things to do, descriptors are looked at every so many turns.
const POLL_EVERY: u32 = 16;

/// Does what several links have for this worker; sleeps, with the GIL released, until one of them has
/// something.
#[pyclass(module = "velo._core")]
pub struct LinkWatch {
    served: Arc<[Served]>,
    spin: Spin,
    /// For what a client has announced.
    announced: Spin,
    /// The descriptor of the loop's own selector: what else there may be to do.
    selector: OwnedFd,
    until_poll: u32,
}

/// A link, and what its streams run in: a context, the functions, who loads them, and who is told
/// what the client says. See [`Served`].
type Watched<'py> = (
    Bound<'py, WorkerLink>,
    Py<PyAny>,
    Py<PyDict>,
    (Py<PyAny>, Py<PyAny>),
);

#[pymethods]
impl LinkWatch {
    #[new]
    fn new(selector: i32) -> PyResult<Self> {
        Ok(LinkWatch {
            served: Arc::new([]),
            spin: new_spin(),
            announced: new_spin(),
            selector: fd::duplicate(selector)?,
            until_poll: POLL_EVERY,
        })
    }

    /// Watches these links from now on; their streams run in this event loop.
    fn watch(&mut self, event_loop: Py<PyAny>, links: Vec<Watched<'_>>) {
        let served = links.into_iter().map(|(link, context, functions, calls)| {
            let event_loop = event_loop.clone_ref(link.py());
            let link = link.get().link.clone();
            Served::new(link, event_loop, context, functions, calls)
        });
        self.served = served.collect();
    }

    /// Does what the links have, or sleeps for so many seconds at most until there is something, and
    /// does that. True if the selector should be looked at now.
    ///
    /// # Errors
    /// When what a client has written makes no sense.
    #[pyo3(signature = (seconds=None))]
    fn turn(slf: &Bound<'_, Self>, seconds: Option<f64>) -> PyResult<bool> {
        let py = slf.py();
        let waits = seconds.is_none_or(|seconds| seconds > 0.0);
        if waits && !slf.borrow_mut().look(py) {
            let others = slf.borrow_mut().sleep(py, seconds)?;
            Self::process(slf)?;
            return Ok(others);
        }
        Self::process(slf)?;
        let mut this = slf.borrow_mut();
        this.until_poll -= 1;
        if this.until_poll == 0 {
            this.until_poll = POLL_EVERY;
        }
        Ok(this.until_poll == POLL_EVERY)
    }

    /// Does what the links have.
    ///
    /// # Errors
    /// As `turn`.
    fn process(slf: &Bound<'_, Self>) -> PyResult<()> {
        let served = slf.borrow().served.clone(); // functions run, and may have others watched
        served
            .iter()
            .filter(|served| served.has_something())
            .try_for_each(|served| served.process_ready(slf.py()))
    }
}

impl LinkWatch {
    fn ends(&self) -> impl Iterator<Item = &Link> + Clone {
        self.served.iter().map(|served| &served.link.end)
    }

    fn ready(&self) -> bool {
        self.served.iter().any(Served::has_something)
    }

    /// Whether a link has something after a short look.
    fn look(&mut self, py: Python<'_>) -> bool {
        self.ready() || spin_on(py, &self.served, &mut self.spin)
    }

    /// Sleeps until a link or the selector has something. True if the selector has.
    ///
    /// It is one system call and no Python, because all that runs between being woken and looking
    /// at the rings is waited for.
    fn sleep(&mut self, py: Python<'_>, seconds: Option<f64>) -> PyResult<bool> {
        self.ends().for_each(Link::arm);
        // Once more, now that the doorbells ring: what came before is seen here.
        let woken = match self.ready() {
            true => Ok(Woken::default()),
            false => {
                let timeout = seconds.map(|s| Duration::try_from_secs_f64(s).unwrap_or(FOREVER));
                let bells = self.ends().map(Link::doorbell);
                py.detach(|| wait_any(bells, self.selector.as_fd(), timeout))
            }
        };
        self.ends().for_each(Link::disarm);
        let Woken { rung, other } = woken?;
        if rung {
            self.ends().for_each(Link::woken);
        }
        if rung && !other && !self.ready() {
            // A client is about to have something, and has woken this worker in time for it.
            spin_on(py, &self.served, &mut self.announced);
        }
        Ok(other)
    }
}

/// Looks at links that have nothing for as long as it pays, and not at all where a core is wanted by
/// others. True if one has something then.
fn spin_on(py: Python<'_>, served: &[Served], spin: &mut Spin) -> bool {
    let ends = || served.iter().map(|served| &served.link.end);
    if ends().any(Link::is_oversubscribed) {
        return false;
    }
    // Each link is asked, as asking takes the answer away.
    let share_core = || ends().fold(false, |share, end| share | end.may_share_core());
    let Some(plan) = spin.plan(share_core) else {
        return false;
    };
    py.detach(|| spin.run(plan, || ends().any(Link::any_ready)))
}
