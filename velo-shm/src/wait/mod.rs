//! How to wait: whether to spin, to sleep until the doorbell rings, or to sleep by the clock.

#[cfg(all(target_os = "linux", not(loom)))]
mod alarm;
mod backoff;
mod coalesce;
mod oversubscription;
mod spin;

#[cfg(all(target_os = "linux", not(loom)))]
pub use alarm::Alarm;
pub use coalesce::{Coalesce, Sleepers};
pub use oversubscription::{LinkLoad, cores_are_free, woke_worker};
pub use spin::{Spin, SpinPlan};
