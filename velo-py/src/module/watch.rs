//! A turn of a worker's event loop: what its clients have for it, or a sleep until they do.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::fork::SharedFd;
use velo_shm::{Link, Spin, Woken, wait_any};

use crate::ffi::fd;
use crate::module::serve::Served;
use crate::module::worker_link::WorkerLink;
use crate::process::ring_pair::new_spin;

/// More than anybody waits.
const FOREVER: Duration = Duration::from_secs(86_400);
/// While the links keep the worker busy, it polls descriptors once per this many turns.
const POLL_EVERY: u32 = 16;

/// Does what several links have for this worker; sleeps, with the GIL released, until one of them has
/// something.
#[pyclass(module = "velo._core")]
pub struct LinkWatch {
    served: Arc<[Served]>,
    spin: Spin,
    /// For the message of a client that has woken this worker ahead.
    prewoken: Spin,
    /// The descriptor of the loop's own selector: what else there may be to do.
    selector: OwnedFd,
    /// What a function forks has no part in it.
    _shared: SharedFd,
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
        let selector = fd::duplicate(selector)?;
        Ok(LinkWatch {
            _shared: SharedFd::new(selector.as_fd()),
            served: Arc::new([]),
            spin: new_spin(),
            prewoken: new_spin(),
            selector,
            until_poll: POLL_EVERY,
        })
    }

    /// Watches these links from now on; their streams run in this event loop.
    fn watch(&mut self, event_loop: Py<PyAny>, links: Vec<Watched<'_>>) {
        let served = links.into_iter().map(|(link, context, functions, calls)| {
            let event_loop = event_loop.clone_ref(link.py());
            let ports = link.get().ports.clone();
            Served::new(ports, event_loop, context, functions, calls)
        });
        self.served = served.collect();
    }

    /// Does what is ready on the links. If nothing is, sleeps until something is, for at most `seconds`. True if the selector should be looked at now.
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
            .filter(|served| served.is_ready())
            .try_for_each(|served| served.process_ready(slf.py()))
    }
}

impl LinkWatch {
    fn ends(&self) -> impl Iterator<Item = &Link> + Clone {
        self.served.iter().map(|served| served.end())
    }

    fn ready(&self) -> bool {
        self.served.iter().any(Served::is_ready)
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
            spin_on(py, &self.served, &mut self.prewoken);
        }
        Ok(other)
    }
}

/// Looks at links that have nothing for as long as it pays, and not at all where a core is wanted by
/// others. True if one has something then.
fn spin_on(py: Python<'_>, served: &[Served], spin: &mut Spin) -> bool {
    let ends = || served.iter().map(|served| served.end());
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
