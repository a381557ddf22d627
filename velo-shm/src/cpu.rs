//! The cores of this process, and which of them runs it.

use std::num::NonZero;
use std::sync::OnceLock;

/// How many cores this process may use. Asked once, since the system takes a while to answer.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// No core: the system does not tell.
#[cfg(feature = "links")]
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// The core that runs this thread; another one may run it a moment later.
#[cfg(feature = "links")]
pub(crate) fn current() -> u64 {
    #[cfg(all(target_os = "linux", not(loom)))]
    if let Ok(core) = nix::sched::sched_getcpu() {
        return core as u64;
    }
    UNKNOWN
}
