//! Making a link, and mapping one that was received. It knows nothing of who uses it, and reads no
//! ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use velo_shm::{
    Bells, Doorbell, LinkEnd, LinkSpec, MemfdSegment, Segment, SegmentError, Side, initialise,
};

use crate::fds::Tracked;
use crate::limits::explain;
use crate::pool::WorkerId;
use crate::transport::{TransportError, exactly_and_maybe};

/// Below this a link is not worth having: the mapping fails for another reason than its size.
const SMALLEST_HEAP: u64 = 64 << 20;

/// Maps a link of these descriptors.
fn attach(
    side: Side,
    segment: OwnedFd,
    mine: OwnedFd,
    theirs: OwnedFd,
) -> Result<Arc<LinkEnd>, String> {
    let segment = MemfdSegment::from_fd(segment)
        .map_err(|error| format!("could not map a link's memory: {}", explain(&error)))?;
    let bells = Doorbell::from_fd(mine)
        .and_then(|mine| {
            Ok(Bells {
                mine,
                theirs: Doorbell::from_fd(theirs)?,
            })
        })
        .map_err(|error| format!("could not use a link's doorbells: {}", explain(&error)))?;
    LinkEnd::attach(Arc::new(segment), side, bells)
        .map_err(|error| format!("could not attach to a link: {}", explain(&error)))
}

/// What came with a message: a link, and perhaps one more descriptor of its peer's.
pub(crate) type Attached = (Arc<LinkEnd>, Option<OwnedFd>);

/// Maps a link that a message brought, or says why this process cannot. An error is a mistake of
/// the supervisor's.
pub(crate) fn received(
    side: Side,
    fds: Vec<OwnedFd>,
) -> Result<Result<Attached, String>, TransportError> {
    match exactly_and_maybe(fds) {
        Ok(([segment, mine, theirs], more)) => {
            Ok(attach(side, segment, mine, theirs).map(|end| (end, more)))
        }
        Err(lost @ TransportError::FdsLost) => Ok(Err(lost.to_string())),
        Err(error) => Err(error),
    }
}

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
pub(crate) struct HeldLink {
    end: Tracked<Arc<LinkEnd>>,
    worker: WorkerId,
    /// What the two sides get, until they have it: segment, own bell, the other side's bell.
    for_client: Vec<OwnedFd>,
    for_worker: Vec<OwnedFd>,
}

impl HeldLink {
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
        let end = LinkEnd::attach(shared, Side::Client, bells).map_err(io::Error::other)?;
        Ok(Self {
            end: Tracked::new(end, fds),
            worker,
            for_client,
            for_worker,
        })
    }

    pub(crate) fn end(&self) -> &LinkEnd {
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
