//! Which core runs this.

/// No core: the system does not tell.
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// The core that runs this thread; another one may run it a moment later.
pub(crate) fn current() -> u64 {
    #[cfg(all(target_os = "linux", not(loom)))]
    if let Ok(core) = nix::sched::sched_getcpu() {
        return core as u64;
    }
    UNKNOWN
}
