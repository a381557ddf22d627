//! Events between two processes, through shared memory: no copy, and no system call while both
//! sides are busy.
//!
//! A [`Segment`] is mapped memory. A *link* in it joins a client and a worker, each with its
//! [`LinkEnd`]; it has slots, and a slot is a pair of rings, one each way. A [`Producer`] writes
//! frames in place, a [`Consumer`] reads them in place, and the link says which slots have
//! something new and wakes a side that sleeps.
//!
//! This crate never blocks, never learns what an event means, and never trusts the other side:
//! what is read from shared memory is checked before it is used, and a side that breaks the rules
//! gets [`RingCorrupted`] for its stream.
//!
//! ```
//! # #[cfg(target_os = "linux")] {
//! use std::sync::Arc;
//! use velo_shm::{Bells, Doorbell, Limits, LinkEnd, LinkSpec, MemfdSegment, Side, initialise};
//!
//! let spec = LinkSpec { slots: 8, heap_bytes: 1 << 20, ..LinkSpec::default() };
//! let segment = Arc::new(MemfdSegment::create(spec.segment_len())?);
//! initialise(&*segment, &spec)?;
//! // In earnest these are two processes, and the segment and the bells reach the other by fd.
//! let (a, b) = (Doorbell::create()?, Doorbell::create()?);
//! let bells = Bells { mine: a.try_clone()?, theirs: b.try_clone()? };
//! let client = LinkEnd::attach(segment.clone(), Side::Client, bells)?;
//! let worker = LinkEnd::attach(segment, Side::Worker, Bells { mine: b, theirs: a })?;
//!
//! let limits = Limits { events: 1024, bytes: 1 << 20 };
//! let (mut events, _results) = client.open_slot(1, limits)?;
//! let mut room = events.reserve(5, true)?;
//! room[..5].copy_from_slice(b"hello");
//! room.commit(2, 5);
//! if events.publish() {
//!     client.notify(1);
//! }
//!
//! let (_results, mut inbox) = worker.open_slot(1, limits)?;
//! worker.take_ready(|slot| assert_eq!(slot, 1));
//! assert_eq!(inbox.peek()?.unwrap().payload, b"hello");
//! inbox.release();
//! if inbox.publish() {
//!     worker.notify(1); // the client waits for space
//! }
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod activity;
mod cpu;
mod doorbell;
mod error;
mod layout;
mod link;
mod ready;
mod ring;
mod segment;
mod side;
mod spec;
mod sync;
pub mod ticks;
mod wait;

pub use activity::{Allowance, Progress, Running, Setting};
pub use doorbell::{Bells, Doorbell};
#[cfg(not(loom))]
pub use doorbell::{Woken, wait_any};
pub use error::{LinkError, RingCorrupted};
pub use link::{Counters, LinkCounters, LinkEnd, SlotFigures, initialise};
pub use ring::{
    Consumer, FIRST_KIND, Frame, Full, Lease, Limits, Loan, Part, Producer, Reservation,
    ReserveError, lending_len,
};
#[cfg(target_os = "linux")]
pub use segment::MemfdSegment;
#[cfg(feature = "named")]
pub use segment::NamedSegment;
pub use segment::{Segment, SegmentError};
pub use side::Side;
pub use spec::{LinkSpec, MAX_SLOTS};
#[cfg(all(target_os = "linux", not(loom)))]
pub use wait::Alarm;
pub use wait::{Coalesce, Sleepers, Spin, SpinPlan};
