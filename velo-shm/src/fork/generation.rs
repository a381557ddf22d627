//! How often this process was forked off.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How often this process was forked off since velo was loaded: what was made at another generation
/// belongs to an ancestor.
#[inline]
pub fn generation() -> u32 {
    GENERATION.load(Relaxed)
}

/// This process was forked off: called in the child.
#[cfg(unix)]
pub(super) fn forked() {
    GENERATION.fetch_add(1, Relaxed);
}
