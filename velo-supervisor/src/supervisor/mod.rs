//! The supervisor: one loop that hears clients, workers and zygotes, and does what the pool decides.

pub(crate) mod client_connection;
pub(crate) mod connection;
pub(crate) mod link_record;
pub(crate) mod log_tail;
mod looks;
pub(crate) mod reactor;
pub(crate) mod report;
pub(crate) mod standalone;
pub(crate) mod worker_process;
mod zygote_orders;
pub(crate) mod zygotes;
