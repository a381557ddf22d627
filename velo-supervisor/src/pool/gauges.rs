//! The figures that the pool reads from shared memory: written by workers and clients, so they may be wrong.

use velo_shm::{Progress, Running};

use super::ids::WorkerId;
use crate::wire::protocol::LinkId;

/// The figures of links and workers.
pub(crate) trait Gauges {
    /// Streams that are open on it.
    fn residents(&self, link: LinkId) -> u32;
    /// Streams that were ever opened on it.
    fn opened(&self, link: LinkId) -> u64;
    /// Closes it for new streams, unless one is open.
    fn retire(&self, link: LinkId) -> bool;
    /// The function of one of its streams that runs, if one does.
    fn running(&self, link: LinkId) -> Option<Running>;
    /// How far its worker has come.
    fn progress(&self, link: LinkId) -> Progress;
    /// Whether its awake worker has input to look at.
    fn input_waits(&self, link: LinkId) -> bool;
    /// Stops watching it, unless streams are open that ask for it; true if so.
    fn stop_watching(&self, link: LinkId) -> bool;
    /// How many bytes of stacks the worker has written.
    fn written(&self, worker: WorkerId) -> u64;
    /// Closes it for new streams; those that are open go on.
    fn close(&self, link: LinkId);
    /// How many bytes of memory of its own a process has.
    fn memory(&self, pid: i32) -> Option<u64>;
}

/// The number of open streams on several links, by their shared memory, which may hold any number.
pub(crate) fn residents_of(
    links: impl IntoIterator<Item = LinkId>,
    of: impl Fn(LinkId) -> u32,
) -> u32 {
    links
        .into_iter()
        .fold(0, |sum, link| sum.saturating_add(of(link)))
}
