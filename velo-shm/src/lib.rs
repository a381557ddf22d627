//! Memory that two processes share to exchange events: no copy, and no system call while both sides
//! are busy.
//!
//! A [`Segment`] is mapped memory. A *link* in it joins a client and a worker, each with its
//! [`Link`]; it has slots, and a slot is a pair of rings, one each way. A [`Producer`] writes frames
//! in place, a [`Consumer`] reads them in place, and the link says which slots have something new and
//! wakes a side that sleeps.
//!
//! This crate never blocks, never learns what an event means, and never trusts the other side: it
//! checks what it reads from shared memory before use, and a side that breaks the rules gets
//! [`RingCorrupted`] for its stream.
//!
//! ```
//! # #[cfg(all(feature = "links", target_os = "linux"))] {
//! # use std::sync::Arc;
//! # use velo_shm::{Bells, Doorbell, Limits, Link, LinkSpec, MemfdSegment, Side, initialise};
//! # let spec = LinkSpec { slots: 8, heap_bytes: 1 << 20, ..LinkSpec::default() };
//! # let segment = Arc::new(MemfdSegment::create(spec.segment_len())?);
//! # initialise(&*segment, &spec)?;
//! # let (a, b) = (Doorbell::create()?, Doorbell::create()?);
//! # let bells = Bells { mine: a.try_clone()?, theirs: b.try_clone()? };
//! # let client = Link::attach(segment.clone(), Side::Client, bells)?;
//! # let worker = Link::attach(segment, Side::Worker, Bells { mine: b, theirs: a })?;
//! # let limits = Limits { events: 1024, bytes: 1 << 20 };
//! # let (mut events, _results) = client.open_slot(1, limits)?;
//! # let (_results, mut inbox) = worker.open_slot(1, limits)?;
//! let mut room = events.reserve(5, true)?; // `client` and `worker` are the two ends of one link
//! room[..5].copy_from_slice(b"hello");
//! room.commit(2, 5);
//! events.publish().then(|| client.notify(1));
//! assert_eq!(inbox.peek()?.unwrap().payload, b"hello");
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Without the feature `links`, which is there by default, this crate has the parts that share nothing and
//! need nothing of Linux: [`ticks`], [`standstill`], and the count of forks.
//!
//! How the two ends are made: one process creates a segment and initialises the link in it, and
//! passes the descriptors of the segment and of the doorbells to both sides.
//!
//! ```
//! # #[cfg(all(feature = "links", target_os = "linux"))] {
//! use std::sync::Arc;
//! use velo_shm::{Bells, Doorbell, Limits, Link, LinkSpec, MemfdSegment, Side, initialise};
//!
//! let spec = LinkSpec { slots: 8, heap_bytes: 1 << 20, ..LinkSpec::default() };
//! let segment = Arc::new(MemfdSegment::create(spec.segment_len())?);
//! initialise(&*segment, &spec)?;
//! let (a, b) = (Doorbell::create()?, Doorbell::create()?);
//! let bells = Bells { mine: a.try_clone()?, theirs: b.try_clone()? };
//! let client = Link::attach(segment.clone(), Side::Client, bells)?;
//! let worker = Link::attach(segment, Side::Worker, Bells { mine: b, theirs: a })?;
//!
//! let limits = Limits { events: 1024, bytes: 1 << 20 };
//! let (_events, _results) = client.open_slot(1, limits)?;
//! let (_results, mut inbox) = worker.open_slot(1, limits)?;
//! client.notify(1);
//! worker.take_ready(|slot| assert_eq!(slot, 1)); // look at both rings of this slot
//! assert!(inbox.peek()?.is_none()); // a slot can be marked with nothing new in it
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "links")]
mod activity;
mod allowance;
mod cpu;
#[cfg(feature = "links")]
mod doorbell;
#[cfg(feature = "links")]
mod error;
#[cfg(not(loom))]
pub mod fork;
mod lane_activity;
#[cfg(feature = "links")]
mod layout;
#[cfg(feature = "links")]
mod link;
#[cfg(feature = "links")]
mod region;
#[cfg(feature = "links")]
mod ring;
#[cfg(feature = "links")]
mod segment;
#[cfg(feature = "links")]
mod side;
#[cfg(feature = "links")]
mod spec;
#[cfg(not(loom))]
pub mod standstill;
#[cfg(feature = "links")]
mod sync;
pub mod ticks;
#[cfg(feature = "links")]
mod wait;

#[cfg(feature = "links")]
pub use activity::{Progress, Running};
pub use allowance::{Allowance, Setting};
pub use cpu::cores;
#[cfg(feature = "links")]
pub use doorbell::{Bells, Doorbell};
#[cfg(all(feature = "links", not(loom)))]
pub use doorbell::{Woken, wait_any};
#[cfg(feature = "links")]
pub use error::{LinkError, RingCorrupted};
pub use lane_activity::LaneActivity;
#[cfg(feature = "links")]
pub use link::{Counters, Link, LinkCounters, SlotFigures};
#[cfg(feature = "links")]
pub use region::initialise;
#[cfg(feature = "links")]
pub use ring::{
    Consumer, FIRST_KIND, Frame, Full, Lease, Limits, Loan, Part, Producer, Reservation,
    ReserveError, lending_len,
};
#[cfg(all(feature = "links", target_os = "linux"))]
pub use segment::MemfdSegment;
#[cfg(feature = "named")]
pub use segment::NamedSegment;
#[cfg(feature = "links")]
pub use segment::{Segment, SegmentError};
#[cfg(feature = "links")]
pub use side::Side;
#[cfg(feature = "links")]
pub use spec::{LinkSpec, MAX_SLOTS};
#[cfg(all(feature = "links", target_os = "linux", not(loom)))]
pub use wait::Alarm;
#[cfg(feature = "links")]
pub use wait::{Coalesce, LinkLoad, Sleepers, Spin, SpinPlan, cores_are_free, woke_worker};

/// The version of this build, as Python writes it: `1.0.0rc1`.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION_MAJOR"),
    ".",
    env!("CARGO_PKG_VERSION_MINOR"),
    ".",
    env!("CARGO_PKG_VERSION_PATCH"),
    env!("CARGO_PKG_VERSION_PRE"),
);
