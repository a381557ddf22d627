//! A link as the supervisor holds it: made here, handed out to both sides, and retired. It knows
//! nothing of who uses it, and reads no ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use velo_shm::{
    Bells, Doorbell, Link, LinkSpec, MemfdSegment, Segment, SegmentError, Side, initialise,
};

use crate::os::fds::Tracked;
use crate::os::limits::explain;
use crate::pool::WorkerId;

/// Below this a link is not worth having: the mapping fails for another reason than its size.
const SMALLEST_HEAP: u64 = 64 << 20;

/// A segment that can be mapped once more: its client may live in this very process.
fn roomy(len: usize) -> Result<MemfdSegment, SegmentError> {
    let segment = MemfdSegment::create(len)?;
    let copy = segment.as_fd().try_clone_to_owned();
    MemfdSegment::from_fd(copy.map_err(|source| SegmentError::Open { source })?)?;
    Ok(segment)
}

/// A link as the supervisor holds it: to hand its descriptors out, to look at its counters, and to
/// retire it.
#[derive(Debug)]
pub(crate) struct LinkRecord {
    end: Tracked<Link>,
    worker: WorkerId,
    /// What the two sides get, until they have it: segment, own bell, the other side's bell.
    for_client: Vec<OwnedFd>,
    for_worker: Vec<OwnedFd>,
}

impl LinkRecord {
    /// A new link to this worker, of the usual size, or a smaller one where address space is short.
    pub(crate) fn create(worker: WorkerId) -> Result<Self, String> {
        let mut spec = LinkSpec::default();
        let segment = loop {
            match roomy(spec.segment_len()) {
                Ok(segment) => break segment,
                Err(_) if spec.heap_bytes / 2 >= SMALLEST_HEAP => spec.heap_bytes /= 2,
                Err(error) => {
                    return Err(format!(
                        "could not create a link's memory: {}",
                        explain(&error)
                    ));
                }
            }
        };
        initialise(&segment, &spec)
            .map_err(|error| format!("could not lay out a link: {}", explain(&error)))?;
        let segment = Arc::new(segment);
        Self::with_segment(&segment, worker)
            .map_err(|error| format!("could not create a link: {}", explain(&error)))
    }

    fn with_segment(segment: &Arc<MemfdSegment>, worker: WorkerId) -> io::Result<Self> {
        let (client_bell, worker_bell) = (Doorbell::create()?, Doorbell::create()?);
        let share = |mine: &Doorbell, theirs: &Doorbell| -> io::Result<Vec<OwnedFd>> {
            [segment.as_fd(), mine.as_fd(), theirs.ringing_fd()]
                .iter()
                .map(BorrowedFd::try_clone_to_owned)
                .collect()
        };
        let for_client = share(&client_bell, &worker_bell)?;
        let for_worker = share(&worker_bell, &client_bell)?;
        let fds = vec![
            segment.as_fd().as_raw_fd(),
            client_bell.as_fd().as_raw_fd(),
            worker_bell.as_fd().as_raw_fd(),
        ];
        // The supervisor waits on no bell and rings none; the side only gives the end a shape.
        let bells = Bells {
            mine: client_bell,
            theirs: worker_bell,
        };
        let shared: Arc<dyn Segment> = segment.clone();
        let end = Link::attach(shared, Side::Client, bells).map_err(io::Error::other)?;
        Ok(Self {
            end: Tracked::new(end, fds),
            worker,
            for_client,
            for_worker,
        })
    }

    pub(crate) fn end(&self) -> &Link {
        &self.end
    }

    /// The worker on its other side.
    pub(crate) fn worker(&self) -> WorkerId {
        self.worker
    }

    /// The worker's descriptors. They are handed out once.
    pub(crate) fn take_for_worker(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.for_worker)
    }

    /// The client's descriptors. They are handed out once.
    pub(crate) fn take_for_client(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.for_client)
    }
}
