//! A ring carries framed messages one way: one producer, one consumer, one contiguous slice each.
//!
//! The producer reserves room, writes into it and commits; what it committed becomes visible when
//! it publishes. The consumer peeks at a frame in place and releases it, or leases its memory for
//! as long as it likes. Neither copies, neither waits, and neither believes what it reads from the
//! other without checking it.

mod consumer;
mod frame;
mod lease;
mod limits;
mod loan;
mod loan_table;
mod producer;
mod refusal;

pub use consumer::{Consumer, Frame};
pub use frame::FIRST_KIND;
pub use lease::Lease;
pub use limits::Limits;
pub use loan::{Loan, Part};
pub use producer::{Producer, Reservation, lending_len};
pub use refusal::{Full, ReserveError};
