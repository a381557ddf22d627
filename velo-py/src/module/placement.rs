//! The placement rule of every client (`velo-supervisor/src/client_side/placement.rs`), over the links of a
//! client in Python: objects with `worker`, `leaving` and `end`, as `velo._process.links.Link`.

use pyo3::intern;
use pyo3::prelude::*;
use velo_supervisor::client_side::placement::{self, Candidate, Choice};

use crate::process::client::handle::ClientLinkHandle;

/// Links, and their figures at the same places.
struct Links<'py> {
    links: Vec<Bound<'py, PyAny>>,
    candidates: Vec<Candidate>,
}

impl<'py> Links<'py> {
    fn of(links: &Bound<'py, PyAny>, avoid: Option<&Bound<'py, PyAny>>) -> PyResult<Self> {
        let py = links.py();
        let links: Vec<_> = links.try_iter()?.collect::<PyResult<_>>()?;
        let candidates = links.iter().map(|link| {
            let end = link.getattr(intern!(py, "end"))?;
            let end = end.cast::<ClientLinkHandle>()?.get();
            Ok(Candidate {
                worker: link.getattr(intern!(py, "worker"))?.extract()?,
                streams: end.link.streams(py) as usize,
                slow: end.link.has_slow_stream(py)?,
                leaving: link.getattr(intern!(py, "leaving"))?.extract()?,
                avoided: avoid.is_some_and(|avoid| avoid.is(link)),
            })
        });
        let candidates = candidates.collect::<PyResult<_>>()?;
        Ok(Links { links, candidates })
    }

    fn at(&self, place: Option<usize>) -> Option<Bound<'py, PyAny>> {
        Some(self.links[place?].clone())
    }
}

/// The number of links whose workers take a stream, of a client that uses `workers` workers.
#[pyfunction]
#[pyo3(signature = (links, workers, avoid=None))]
pub fn count_usable(
    links: &Bound<'_, PyAny>,
    workers: usize,
    avoid: Option<&Bound<'_, PyAny>>,
) -> PyResult<usize> {
    let links = Links::of(links, avoid)?;
    Ok(placement::usable(&links.candidates, workers).len())
}

/// The link for a stream. None: it should go to a new worker, if one can be had.
#[pyfunction]
#[pyo3(signature = (links, workers, avoid=None))]
pub fn choose_link<'py>(
    links: &Bound<'py, PyAny>,
    workers: usize,
    avoid: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let links = Links::of(links, avoid)?;
    Ok(match placement::choose(&links.candidates, workers) {
        Choice::Use(place) => links.at(Some(place)),
        Choice::Grow => None,
    })
}

/// The link with the fewest streams. None: no worker takes the stream.
#[pyfunction]
#[pyo3(signature = (links, workers, avoid=None))]
pub fn least_loaded_link<'py>(
    links: &Bound<'py, PyAny>,
    workers: usize,
    avoid: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let links = Links::of(links, avoid)?;
    Ok(links.at(placement::least_loaded(&links.candidates, workers)))
}

/// A link for a stream while a new worker starts. None: the stream waits for the new worker. `placing`
/// streams of the client wait for a worker now.
#[pyfunction]
#[pyo3(signature = (links, workers, avoid, placing))]
pub fn link_below_share<'py>(
    links: &Bound<'py, PyAny>,
    workers: usize,
    avoid: Option<&Bound<'py, PyAny>>,
    placing: usize,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let links = Links::of(links, avoid)?;
    Ok(links.at(placement::below_share(&links.candidates, workers, placing)))
}
