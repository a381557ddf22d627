//! The figures that the caller's side of keys publishes for `velo top` and `velo status`.

use pyo3::prelude::*;

use super::keyed::Keys;
use super::lane::Way;
use crate::user::channel::Channel;

impl Keys {
    /// Updates the statistics of the function, and publishes evictions and latencies for those who look at
    /// the workers.
    pub(super) fn show(&self, py: Python<'_>) -> PyResult<()> {
        let (counts, news) = self.state.with(py, |state| {
            let news = state.lanes.iter().any(|lane| lane.evicted != lane.shown);
            (state.counts, news)
        })?;
        self.counts.tell(py, counts);
        let latencies = self.counts.unpublished(py)?;
        if news || latencies.is_some() {
            self.show_news(py, latencies)?;
        }
        Ok(())
    }

    #[cold]
    fn show_news(&self, py: Python<'_>, latencies: Option<(u64, u64)>) -> PyResult<()> {
        let lanes: Vec<_> = self.state.with(py, |state| {
            let open = state.lanes.iter_mut().filter(|lane| !lane.over);
            open.map(|lane| {
                lane.shown = lane.evicted;
                (lane.way.clone(), lane.evicted)
            })
            .collect()
        })?;
        for (way, evicted) in lanes {
            let Way::Ring(core) = way else { continue };
            if let Channel::Ring(ring) = &core.channel {
                ring.show_evicted(py, evicted)?;
                if let Some((median, p99)) = latencies {
                    ring.publish_latencies(py, median, p99)?;
                }
            }
        }
        Ok(())
    }
}
