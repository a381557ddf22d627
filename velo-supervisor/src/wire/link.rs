//! Maps a link that a message brought.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use velo_shm::{Bells, Doorbell, Link, MemfdSegment, Side};

use crate::os::limits::explain;
use crate::wire::transport::{TransportError, exactly_and_maybe};

/// Maps a link of these descriptors.
fn attach(side: Side, segment: OwnedFd, mine: OwnedFd, theirs: OwnedFd) -> Result<Link, String> {
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
    Link::attach(Arc::new(segment), side, bells)
        .map_err(|error| format!("could not attach to a link: {}", explain(&error)))
}

/// What came with a message: a link, and perhaps one more descriptor of its peer's.
pub(crate) type Attached = (Link, Option<OwnedFd>);

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
