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
