//! The atomics that the protocol is made of: those of `std`, or loom's when it is being proven.
//!
//! Only what two processes (or two threads of one) synchronise by goes through here. Bookkeeping
//! of one process stays with `std`, so that the models remain small.

pub(crate) use std::sync::atomic::Ordering;

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, fence},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, fence},
};

/// Orders everything before it before everything after it, as a SeqCst fence does.
///
/// On x86-64 a locked instruction does the same as the `mfence` that a compiler takes for it, and
/// is about twice as fast; this is on the path of every publish.
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline(always)]
pub(crate) fn full_fence() {
    // SAFETY: leaves the top of the stack as it is, and flags are declared to change. Without
    // `nomem` no access is moved over it.
    unsafe { std::arch::asm!("lock or dword ptr [rsp], 0") }
}

/// Orders everything before it before everything after it.
#[cfg(all(not(target_arch = "x86_64"), not(loom)))]
#[inline(always)]
pub(crate) fn full_fence() {
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Orders everything before it before everything after it.
#[cfg(loom)]
pub(crate) fn full_fence() {
    loom::sync::atomic::fence(Ordering::SeqCst);
}
